{{/* OpenTelemetry's variables, as a map. Without a collector there are none, and tracing is off. */}}
{{- define "cmcl.tracingSettings" -}}
{{- with .Values.monitoring.tracing.endpointUrl }}
OTEL_EXPORTER_OTLP_ENDPOINT: {{ . | quote }}
{{- end }}
{{- end -}}
