{{- define "cmcl.trainingName" -}}
{{ include "cmcl.fullname" . }}-training
{{- end -}}

{{/* KubeRay names the Secret that it makes after the cluster. */}}
{{- define "cmcl.trainingAuthSecret" -}}
{{ default (include "cmcl.trainingName" .) .Values.ray.authSecret }}
{{- end -}}

{{/* Pods that hold `count` things when `perPod` share one: rounded up. */}}
{{- define "cmcl.pods" -}}
{{ divf .count .perPod | ceil | int }}
{{- end -}}

{{/* Pod templates of training: the same in the RayCluster for all and in the RayJob of one attempt. */}}
{{- define "cmcl.trainingHead" -}}
{{- $head := .Values.training.head -}}
{{- include "cmcl.rayNode" (merge (dict "group" $head "resources" $head.resources "ports" (dict "gcs-server" 6379 "dashboard" 8265 "client" 10001)) (include "cmcl.trainingNode" . | fromYaml) (dict "root" .)) -}}
{{- end -}}

{{- define "cmcl.trainingWorkers" -}}
{{- $training := .Values.training -}}
{{- $resources := deepCopy $training.workers.resources -}}
{{- if $training.gpusPerRank -}}
{{- $gpus := mulf $training.gpusPerRank $training.ranksPerPod | ceil | int -}}
{{- $resources = mergeOverwrite $resources (dict "limits" (dict $training.gpuResource $gpus)) -}}
{{- end -}}
{{- include "cmcl.rayNode" (merge (dict "group" $training.workers "resources" $resources "ports" dict "noticeSeconds" $training.noticeSeconds) (include "cmcl.trainingNode" . | fromYaml) (dict "root" .)) -}}
{{- end -}}

{{- define "cmcl.trainingNode" -}}
component: training
{{- with .Values.training }}
{{- $settings := dict "CMCL_CHECKPOINT_SECONDS" (toString .checkpointSeconds) "CMCL_PEER_SECONDS" (toString .peerSeconds) }}
extraEnv: {{- toYaml (merge (deepCopy .extraEnv) $settings) | nindent 2 }}
{{- end }}
readinessPath: /api/healthz
readinessPort: 52365
{{- end -}}

{{- define "cmcl.rayJobPods" -}}
head: {{- include "cmcl.trainingHead" . | nindent 2 }}
workers: {{- include "cmcl.trainingWorkers" . | nindent 2 }}
{{- end -}}

{{/* The pod template of one group of Ray nodes.
     root; component: training or serving; group: its values; extraEnv; resources; ports by name;
     readinessPath and readinessPort; noticeSeconds, if it is to say before it goes. */}}
{{- define "cmcl.rayNode" -}}
metadata:
  labels: {{- include "cmcl.selectorLabels" . | nindent 4 }}
spec:
  {{- include "cmcl.podSpec" (dict "root" .root "account" (printf "%s-ray" (include "cmcl.fullname" .root)) "group" .group) | nindent 2 }}
  {{- with .noticeSeconds }}
  terminationGracePeriodSeconds: {{ add . 30 }}
  {{- end }}
  containers:
    - name: ray
      image: {{ include "cmcl.image" (dict "root" .root "image" .root.Values.ray.image) }}
      imagePullPolicy: {{ .root.Values.ray.image.pullPolicy }}
      # KubeRay copies this to the init container that it adds to workers.
      securityContext: {{- include "cmcl.containerSecurityContext" . | nindent 8 }}
      env:
        - name: RAY_USAGE_STATS_ENABLED
          value: "0"
        {{- with include "cmcl.storeEnv" .root }}
        {{- trim . | nindent 8 }}
        {{- end }}
        {{- range $name, $value := .extraEnv }}
        - name: {{ $name }}
          value: {{ $value | quote }}
        {{- end }}
      {{- with .ports }}
      ports:
        {{- range $name, $port := . }}
        - name: {{ $name }}
          containerPort: {{ $port }}
        {{- end }}
      {{- end }}
      {{- with .noticeSeconds }}
      # At SIGTERM it is too late: Ray ends a node's processes at once.
      lifecycle:
        preStop:
          exec:
            command:
              - sh
              - -c
              - >-
                ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message "the pod ends"
                --deadline-remaining-seconds {{ int . }} && sleep {{ int . }}
      {{- end }}
      # KubeRay's own probes call wget, which slim images do not have.
      livenessProbe:
        httpGet: {path: /api/healthz, port: 52365}
        initialDelaySeconds: 30
        periodSeconds: 5
        timeoutSeconds: 5
        failureThreshold: 24
      readinessProbe:
        httpGet: {path: {{ .readinessPath }}, port: {{ .readinessPort }}}
        periodSeconds: 5
        timeoutSeconds: 5
      resources: {{- toYaml .resources | nindent 8 }}
      volumeMounts: {{- include "cmcl.volumeMounts" .root | nindent 8 }}
  volumes:
    - name: tmp
      emptyDir: {}
    - name: home
      emptyDir: {}
    {{- with include "cmcl.storeVolume" .root }}
    {{- trim . | nindent 4 }}
    {{- end }}
{{- end -}}
