{{/* Replicas of the control plane: what was chosen, or what the database permits; none while it is restored. */}}
{{- define "cmcl.replicas" -}}
{{- if include "cmcl.restores" . -}}
0
{{- else -}}
{{- $automatic := ternary 1 2 (not (empty (include "cmcl.usesSqlite" .))) -}}
{{ ternary $automatic .Values.service.replicas (kindIs "invalid" .Values.service.replicas) | int }}
{{- end -}}
{{- end -}}

{{/* Non-empty when an autoscaler decides about them. */}}
{{- define "cmcl.scalesService" -}}
{{- if and .Values.service.autoscaling.enabled (not (include "cmcl.restores" .)) }}true{{ end -}}
{{- end -}}

{{/* Non-empty when there are several, now or when there is more to do. */}}
{{- define "cmcl.hasReplicas" -}}
{{- if or (include "cmcl.scalesService" .) (gt (include "cmcl.replicas" . | int) 1) }}true{{ end -}}
{{- end -}}
