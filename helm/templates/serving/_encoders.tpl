{{/* The worker group of the encoders: a pod for each of their processes, as large as the largest needs. */}}
{{- define "cmcl.encoderGroup" -}}
{{- $serving := .Values.serving -}}
{{- $pods := 0 -}}
{{- $gpus := 0 -}}
{{- range $serving.encoders -}}
{{- $pods = add $pods (default 1 .replicas) -}}
{{- $gpus = max $gpus (default 0 .num_gpus | ceil | int) -}}
{{- end -}}
{{- $resources := deepCopy $serving.encoderWorkers.resources -}}
{{- if $gpus -}}
{{- $resources = mergeOverwrite $resources (dict "limits" (dict .Values.training.gpuResource $gpus)) -}}
{{- end -}}
{{- $node := merge (include "cmcl.servingNode" . | fromYaml) (include "cmcl.proxyNode" . | fromYaml) -}}
groupName: encoders
replicas: {{ $pods }}
minReplicas: {{ $pods }}
maxReplicas: {{ $pods }}
scaleStrategy: {}
# Two in a pod for one: a new process starts beside the old one.
rayStartParams:
  {{- include "cmcl.placesFor" (dict "resource" "cmcl_encoder" "number" 2) | nindent 2 }}
  {{- include "cmcl.numGpus" $gpus | nindent 2 }}
template: {{- include "cmcl.rayNode" (merge (dict "root" . "group" $serving.encoderWorkers "resources" $resources "where" "serving.encoderWorkers.resources" "noticeSeconds" $serving.drainSeconds "counts" $pods) $node) | nindent 2 }}
{{- end -}}
