{{/* The worker group of the encoders: a pod per process, with the largest resources of any encoder. */}}
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
# Room for two per pod, because a new process starts next to the old one.
rayStartParams:
  {{- include "cmcl.placesFor" (dict "resource" "cmcl_encoder" "number" 2) | nindent 2 }}
  {{- include "cmcl.numGpus" $gpus | nindent 2 }}
template: {{- include "cmcl.rayNode" (merge (dict "root" . "group" $serving.encoderWorkers "resources" $resources "where" "serving.encoderWorkers.resources" "noticeSeconds" $serving.drainSeconds "counts" $pods) $node) | nindent 2 }}
{{- end -}}
