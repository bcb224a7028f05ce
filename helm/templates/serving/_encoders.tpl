{{/* Encoders by the image of their pods, which is a Ray resource that they request; "default" for ray.image. */}}
{{- define "cmcl.encodersByImage" -}}
{{- $byImage := dict -}}
{{- range $encoder := .Values.encoders -}}
{{- $image := "default" -}}
{{- range $resource, $_ := $encoder.resources -}}
{{- if not (hasKey $.Values.encoderImages $resource) -}}
{{- fail (printf "encoder %s requests the Ray resource %s, which no pod has: add its image to encoderImages" $encoder.name $resource) -}}
{{- end -}}
{{- if ne $image "default" -}}
{{- fail (printf "encoder %s requests several Ray resources (%s, %s), and a pod has one image: request one" $encoder.name $image $resource) -}}
{{- end -}}
{{- $image = $resource -}}
{{- end -}}
{{- $_ := set $byImage $image (append (default list (get $byImage $image)) $encoder) -}}
{{- end -}}
{{- toYaml $byImage -}}
{{- end -}}

{{/* A worker group of encoders with one image: a pod per process, with the largest resources of any encoder.
     root; image: as in cmcl.encodersByImage; encoders. */}}
{{- define "cmcl.encoderGroup" -}}
{{- $image := .image -}}
{{- $pods := 0 -}}
{{- $gpus := 0 -}}
{{- $amount := 0 -}}
{{- range .encoders -}}
{{- $pods = add $pods (default 1 .replicas) -}}
{{- $gpus = max $gpus (default 0 .num_gpus | ceil | int) -}}
{{- $amount = max $amount (dig "resources" $image 0 . | ceil | int) -}}
{{- end -}}
{{- with .root -}}
{{- $serving := .Values.serving -}}
{{- $resources := deepCopy $serving.encoderWorkers.resources -}}
{{- if $gpus -}}
{{- $resources = mergeOverwrite $resources (dict "limits" (dict .Values.training.gpuResource $gpus)) -}}
{{- end -}}
{{- $node := merge (include "cmcl.servingNode" . | fromYaml) (include "cmcl.proxyNode" . | fromYaml) -}}
{{- $places := dict "cmcl_encoder" 2 -}}
{{- $name := "encoders" -}}
{{- if ne $image "default" -}}
{{- $name = printf "encoders-%s" $image -}}
{{- $_ := set $places $image (mul 2 $amount) -}}
{{- $_ := set $node "image" (get .Values.encoderImages $image) -}}
{{- end -}}
groupName: {{ $name }}
replicas: {{ $pods }}
minReplicas: {{ $pods }}
maxReplicas: {{ $pods }}
scaleStrategy: {}
# Room for two per pod, because a new process starts next to the old one.
rayStartParams:
  {{- include "cmcl.placesFor" (dict "resources" $places) | nindent 2 }}
  {{- include "cmcl.numGpus" $gpus | nindent 2 }}
template: {{- include "cmcl.rayNode" (merge (dict "root" . "group" $serving.encoderWorkers "resources" $resources "where" "serving.encoderWorkers.resources" "noticeSeconds" $serving.drainSeconds "counts" $pods) $node) | nindent 2 }}
{{- end -}}
{{- end -}}
