{{/* Address of the trace collector. Without one, tracing is off. */}}
{{- define "cmcl.tracingEnv" -}}
{{- with .Values.monitoring.tracing.endpointUrl }}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ . | quote }}
{{- end }}
{{- end -}}
