{{/* OpenTelemetry's variables, as a map. Without a collector there are none, and tracing is off. */}}
{{- define "cmcl.tracingSettings" -}}
{{- with .Values.monitoring.tracing.endpointUrl }}
OTEL_EXPORTER_OTLP_ENDPOINT: {{ . | quote }}
{{- end }}
{{- end -}}

{{/* The same for replicas, which get many requests. */}}
{{- define "cmcl.replicaTracingSettings" -}}
{{- with .Values.monitoring.tracing }}
{{- if .endpointUrl }}
{{ include "cmcl.tracingSettings" $ }}
OTEL_TRACES_SAMPLER: parentbased_traceidratio
OTEL_TRACES_SAMPLER_ARG: {{ .requestRatio | quote }}
{{- end }}
{{- end }}
{{- end -}}
