{{/* Replicas of the control plane: what was chosen, or what the database permits. */}}
{{- define "cmcl.replicas" -}}
{{ default (ternary 1 2 (not (empty (include "cmcl.usesSqlite" .)))) (int .Values.service.replicas) }}
{{- end -}}

{{/* Non-empty when there are several, now or when there is more to do. */}}
{{- define "cmcl.hasReplicas" -}}
{{- if or .Values.service.autoscaling.enabled (gt (include "cmcl.replicas" . | int) 1) }}true{{ end -}}
{{- end -}}
