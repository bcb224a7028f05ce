{{/* Non-empty if there is a separate RayCluster for training. */}}
{{- define "cmcl.hasTrainingCluster" -}}
{{- if not (or (include "cmcl.makesRayJobs" .) .Values.ray.oneCluster) }}true{{ end -}}
{{- end -}}

{{- define "cmcl.trainingName" -}}
{{ include "cmcl.fullname" . }}-training
{{- end -}}

{{/* Name of the training cluster. KubeRay derives the name of the head's Service from it. */}}
{{- define "cmcl.trainingCluster" -}}
{{ ternary (include "cmcl.servingName" .) (include "cmcl.trainingName" .) .Values.ray.oneCluster }}
{{- end -}}

{{/* KubeRay names the Secret that it creates after the cluster. Names of a RayService's clusters are
     not known in advance. */}}
{{- define "cmcl.trainingAuthSecret" -}}
{{- if and .Values.ray.oneCluster (not .Values.ray.authSecret) -}}
{{- fail "ray.oneCluster is true, but ray.authSecret is empty: create a Secret with auth_token, because the name of a RayService's own Secret is not known in advance" -}}
{{- end -}}
{{ default (include "cmcl.trainingName" .) .Values.ray.authSecret }}
{{- end -}}

{{/* Pod templates of training: the same in the RayCluster for all and in the RayJob of one attempt. */}}
{{- define "cmcl.trainingHead" -}}
{{- $head := .Values.training.head -}}
{{- include "cmcl.rayNode" (merge (dict "root" . "group" $head "resources" $head.resources "where" "training.head.resources" "autoscaled" (include "cmcl.autoscales" .) "ports" (dict "gcs-server" 6379 "dashboard" 8265 "client" 10001)) (include "cmcl.trainingNode" . | fromYaml)) -}}
{{- end -}}

{{/* GPUs of one pod of ranks. */}}
{{- define "cmcl.gpusOfRanks" -}}
{{ mulf .Values.training.gpusPerRank .Values.training.ranksPerPod | ceil | int }}
{{- end -}}

{{/* root; counts: number of pods, if they are part of a RayService. */}}
{{- define "cmcl.trainingWorkers" -}}
{{- $counts := .counts -}}
{{- with .root -}}
{{- $training := .Values.training -}}
{{- $resources := deepCopy $training.workers.resources -}}
{{- with include "cmcl.gpusOfRanks" . | int -}}
{{- $resources = mergeOverwrite $resources (dict "limits" (dict $training.gpuResource .)) -}}
{{- end -}}
{{- $node := include "cmcl.trainingWorkerNode" . | fromYaml -}}
{{- include "cmcl.rayNode" (merge (dict "root" . "group" $training.workers "resources" $resources "where" "training.workers.resources" "noticeSeconds" $training.noticeSeconds "counts" $counts) $node) -}}
{{- end -}}
{{- end -}}

{{- define "cmcl.trainingWorkerNode" -}}
{{- $node := include "cmcl.trainingNode" . | fromYaml -}}
{{- if .Values.ray.oneCluster -}}
{{- /* KubeRay puts all workers behind the endpoint: those without a proxy must not get ready. */ -}}
{{- $node = mergeOverwrite $node (include "cmcl.proxyNode" . | fromYaml) (dict "settings" (merge dict $node.settings (include "cmcl.servingSettings" . | fromYaml))) -}}
{{- end -}}
{{- toYaml $node -}}
{{- end -}}

{{- define "cmcl.trainingNode" -}}
component: training
part: {{- toYaml .Values.training | nindent 2 }}
settings: {{- include "cmcl.trainingSettings" . | nindent 2 }}
readinessPath: /api/healthz
readinessPort: 52365
{{- end -}}

{{- define "cmcl.trainingSettings" -}}
CMCL_CHECKPOINT_SECONDS: {{ .Values.training.checkpointSeconds | quote }}
CMCL_PEER_SECONDS: {{ .Values.training.peerSeconds | quote }}
CMCL_SCRATCH_BYTES: {{ .Values.training.scratchBytes | int64 | quote }}
CMCL_PREPARE_FILE_MEMORY: {{ include "cmcl.fileMemory" . | quote }}
{{- end -}}

{{/* The worker group of the ranks. */}}
{{- define "cmcl.ranksGroup" -}}
{{- $training := .Values.training -}}
{{- $scaling := $training.autoscaling -}}
{{- $pods := include "cmcl.podCount" (dict "count" $training.ranks "perPod" $training.ranksPerPod) | int -}}
{{- $most := default $pods (int $scaling.maxPods) -}}
{{- if lt $most $pods -}}
{{- fail (printf "training.autoscaling.maxPods is %d; the ranks of one attempt need %d" $most $pods) -}}
{{- end -}}
{{- if gt (int $scaling.minPods) $most -}}
{{- fail (printf "training.autoscaling.minPods is %d; it must be at most maxPods, which is %d" (int $scaling.minPods) $most) -}}
{{- end -}}
{{- $least := $pods -}}
{{- if include "cmcl.autoscales" . -}}
{{- $least = int $scaling.minPods -}}
{{- else -}}
{{- $most = $pods -}}
{{- end -}}
groupName: ranks
replicas: {{ $least }}
minReplicas: {{ $least }}
maxReplicas: {{ $most }}
scaleStrategy: {}
rayStartParams:
  num-cpus: {{ $training.ranksPerPod | int64 | quote }}
  {{- include "cmcl.numGpus" (include "cmcl.gpusOfRanks" . | int) | nindent 2 }}
template: {{- include "cmcl.trainingWorkers" (dict "root" . "counts" (ternary (list $least $most) nil .Values.ray.oneCluster)) | nindent 2 }}
{{- end -}}

{{/* Pod templates that the service merges over the pods of a RayJob. */}}
{{- define "cmcl.rayJobPods" -}}
{{- if .Values.ray.oneCluster -}}
{{- fail "ray.oneCluster is true and training.launcher is kuberay, which creates a cluster for each attempt: choose one of them" -}}
{{- end -}}
head: {{- include "cmcl.trainingHead" . | nindent 2 }}
workers: {{- include "cmcl.trainingWorkers" (dict "root" .) | nindent 2 }}
{{- if eq .Values.training.rayJobs.submissionMode "K8sJobMode" }}
submitter: {{- include "cmcl.submitter" . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* The submitter pod. KubeRay's default has no security context. */}}
{{- define "cmcl.submitter" -}}
metadata: {{- include "cmcl.podMetadata" (dict "root" . "component" "training" "group" .Values.training.head) | nindent 2 }}
spec:
  {{- include "cmcl.podSpec" (dict "root" . "account" (include "cmcl.rayServiceAccount" .) "group" .Values.training.head) | nindent 2 }}
  restartPolicy: Never
  containers:
    - name: ray-job-submitter
      image: {{ include "cmcl.image" (dict "root" . "image" .Values.ray.image) | quote }}
      imagePullPolicy: {{ .Values.ray.image.pullPolicy }}
      securityContext: {{- include "cmcl.containerSecurityContext" . | nindent 8 }}
      env: {{- include "cmcl.userEnv" . | nindent 8 }}
      resources: {{- toYaml .Values.helperResources | nindent 8 }}
      volumeMounts:
        - name: tmp
          mountPath: /tmp
        - name: home
          mountPath: /home/cmcl
  volumes:
    - name: tmp
      emptyDir: {}
    - name: home
      emptyDir: {}
{{- end -}}
