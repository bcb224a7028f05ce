{{/* Replicas of the control plane: the value, or the default of the database; none during a restore. */}}
{{- define "cmcl.replicas" -}}
{{- if include "cmcl.restores" . -}}
0
{{- else -}}
{{- $automatic := ternary 1 2 (not (empty (include "cmcl.usesSqlite" .))) -}}
{{ ternary $automatic .Values.service.replicas (kindIs "invalid" .Values.service.replicas) | int }}
{{- end -}}
{{- end -}}

{{/* Non-empty if an autoscaler sets the number. */}}
{{- define "cmcl.scalesService" -}}
{{- if and .Values.service.autoscaling (not (include "cmcl.restores" .)) }}true{{ end -}}
{{- end -}}

{{/* How many run, as long as Helm and not the autoscaler set that number; empty otherwise, and where no
     cluster is asked. A field that Helm alone has set goes back to 1 when Helm no longer applies it. One that
     the autoscaler has set is a conflict when Helm applies it, also at a rollback. */}}
{{- define "cmcl.replicasOfHelm" -}}
{{- $deployment := lookup "apps/v1" "Deployment" .Release.Namespace (include "cmcl.fullname" .) -}}
{{- $ours := false -}}
{{- range dig "metadata" "managedFields" list $deployment -}}
{{- $ours = or $ours (and (eq .manager "helm") (hasKey (dig "fieldsV1" "f:spec" dict .) "f:replicas")) -}}
{{- end -}}
{{- if $ours }}{{ $deployment.spec.replicas }}{{ end -}}
{{- end -}}

{{/* Non-empty if there are several, or may be by autoscaling. */}}
{{- define "cmcl.hasReplicas" -}}
{{- if or (include "cmcl.scalesService" .) (gt (include "cmcl.replicas" . | int) 1) }}true{{ end -}}
{{- end -}}
