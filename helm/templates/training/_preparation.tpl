{{/* GPUs that the encoders without an image of their own reserve together in preparation. */}}
{{- define "cmcl.gpusOfPreparation" -}}
{{- $gpus := 0.0 -}}
{{- range .Values.encoders -}}
{{- if and .resources (include "cmcl.makesRayJobs" $) -}}
{{- fail (printf "encoder %s has an image of its own, which preparation has with training.launcher ray only" .name) -}}
{{- end -}}
{{- if not .resources -}}
{{- $gpus = addf $gpus (mulf (default 0 .num_gpus) (default 1 .actors)) -}}
{{- end -}}
{{- end -}}
{{ ceil $gpus | int }}
{{- end -}}

{{/* Processes of encoders without an image of their own. */}}
{{- define "cmcl.encodersOfPreparation" -}}
{{- $processes := 0 -}}
{{- range .Values.encoders -}}
{{- if not .resources -}}
{{- $processes = add $processes (default 1 .actors) -}}
{{- end -}}
{{- end -}}
{{ $processes }}
{{- end -}}

{{/* Bytes of a pod's memory that units of preparation may reserve; 0 without a limit. The rest is for encoders, for
     Ray's object store (an eighth), for Ray's own processes (512 MiB) and for worker processes that wait, of which Ray
     keeps one for each CPU (384 MiB). root; resources: of the pod, and where they are; cpus; encoders: processes in
     the pod. */}}
{{- define "cmcl.memoryOfUnits" -}}
{{- $preparation := .root.Values.preparation -}}
{{- $where := printf "%s.limits.memory" .where -}}
{{- $limit := dig "limits" "memory" "" .resources -}}
{{- if $limit -}}
{{- $bytes := include "cmcl.bytes" (dict "value" $limit "where" $where) | int64 -}}
{{- $encoder := include "cmcl.bytes" (dict "value" $preparation.encoderMemory "where" "preparation.encoderMemory") | int64 -}}
{{- $overhead := add 536870912 (mul .cpus 402653184) (div $bytes 8) -}}
{{- $rest := sub (sub $bytes $overhead) (mul .encoders $encoder) -}}
{{- $unit := add 536870912 (default 1073741824 (include "cmcl.fileMemory" .root | int64)) -}}
{{- if lt $rest $unit -}}
{{- fail (printf "%s is %v: %d MiB are for Ray and waiting processes of %d CPUs, and %v (preparation.encoderMemory) for each of %d processes of encoders. A unit needs %d MiB, and %d MiB remain: raise the limit" $where $limit (div $overhead 1048576) (int .cpus) $preparation.encoderMemory (int .encoders) (div $unit 1048576) (div $rest 1048576)) -}}
{{- end -}}
{{ $rest }}
{{- else -}}
0
{{- end -}}
{{- end -}}

{{/* preparation.fileMemory in bytes; 0 if it is empty. */}}
{{- define "cmcl.fileMemory" -}}
{{- with .Values.preparation.fileMemory -}}
{{ include "cmcl.bytes" (dict "value" . "where" "preparation.fileMemory") }}
{{- else -}}
0
{{- end -}}
{{- end -}}

{{/* The worker groups of preparation, as a list: one for units and encoders, and one for each image of encoders. */}}
{{- define "cmcl.preparationGroups" -}}
{{- $preparation := .Values.preparation -}}
{{- $gpus := divf (include "cmcl.gpusOfPreparation" . | int) $preparation.pods | ceil | int -}}
{{- $processes := divf (include "cmcl.encodersOfPreparation" . | int) $preparation.pods | ceil | int -}}
- {{- include "cmcl.preparationGroup" (dict "root" . "name" "preparation" "pods" $preparation.pods "cpus" $preparation.cpusPerPod "gpus" $gpus "encoders" $processes) | nindent 2 }}
{{- range $image, $encoders := omit (include "cmcl.encodersByImage" . | fromYaml) "default" }}
{{- $pods := 0 -}}
{{- $cpus := 0 -}}
{{- $gpus := 0 -}}
{{- $amount := 0 -}}
{{- range $encoders -}}
{{- $pods = add $pods (default 1 .actors) -}}
{{- $cpus = max $cpus (dig "num_cpus" 1 . | ceil | int) -}}
{{- $gpus = max $gpus (default 0 .num_gpus | ceil | int) -}}
{{- $amount = max $amount (dig "resources" $image 0 . | ceil | int) -}}
{{- end }}
- {{- include "cmcl.preparationGroup" (dict "root" $ "name" (printf "preparation-%s" $image) "pods" $pods "cpus" $cpus "gpus" $gpus "encoders" 1 "resources" (dict $image $amount) "image" (get $.Values.encoderImages $image)) | nindent 2 }}
{{- end -}}
{{- end -}}

{{/* root; name; pods; cpus, gpus, resources: of a pod, as Ray counts them; encoders: processes in a pod; image: in
     place of ray.image. */}}
{{- define "cmcl.preparationGroup" -}}
{{- $workers := .root.Values.preparation.workers -}}
{{- $limits := deepCopy $workers.resources -}}
{{- if .gpus -}}
{{- $limits = mergeOverwrite $limits (dict "limits" (dict .root.Values.training.gpuResource .gpus)) -}}
{{- end -}}
{{- $node := include "cmcl.trainingWorkerNode" .root | fromYaml -}}
{{- with .image -}}
{{- $_ := set $node "image" . -}}
{{- end -}}
{{- $least := ternary 0 (int .pods) (not (empty (include "cmcl.autoscales" .root))) -}}
groupName: {{ .name }}
replicas: {{ $least }}
minReplicas: {{ $least }}
maxReplicas: {{ .pods }}
scaleStrategy: {}
rayStartParams:
  num-cpus: {{ .cpus | int64 | quote }}
  {{- include "cmcl.numGpus" .gpus | nindent 2 }}
  {{- with include "cmcl.memoryOfUnits" (dict "root" .root "resources" $limits "where" "preparation.workers.resources" "cpus" .cpus "encoders" .encoders) | int64 }}
  memory: {{ . | quote }}
  {{- end }}
  {{- with dig "limits" "memory" "" $limits }}
  object-store-memory: {{ div (include "cmcl.bytes" (dict "value" . "where" "preparation.workers.resources.limits.memory") | int64) 8 | quote }}
  {{- end }}
  {{- with .resources }}
  resources: {{ toJson . | squote | quote }}
  {{- end }}
template: {{- include "cmcl.rayNode" (merge (dict "root" .root "group" $workers "resources" $limits "where" "preparation.workers.resources" "counts" (ternary (list $least (int .pods)) nil .root.Values.ray.oneCluster)) $node) | nindent 2 }}
{{- end -}}
