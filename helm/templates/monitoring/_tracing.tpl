{{/* Where the service sends its traces; without an address it makes none. */}}
{{- define "cmcl.tracingEnv" -}}
{{- with .Values.monitoring.tracing.endpointUrl }}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ . | quote }}
{{- end }}
{{- end -}}
