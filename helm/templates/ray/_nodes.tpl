{{/* Version of Ray in the worker image, which the service's RayJobs name too (service/launchers/kuberay.py). */}}
{{- define "cmcl.rayVersion" -}}
2.60.0
{{- end -}}

{{/* Number of pods for `count` processes with `perPod` in each, rounded up. */}}
{{- define "cmcl.podCount" -}}
{{ divf .count .perPod | ceil | int }}
{{- end -}}

{{/* KubeRay and Ray's autoscaler recognise only some GPU resource names, not nvidia.com/gpu.shared, for example. */}}
{{- define "cmcl.numGpus" -}}
{{- if . }}num-gpus: {{ . | quote }}{{ end -}}
{{- end -}}

{{/* Authentication of a cluster: by token. */}}
{{- define "cmcl.rayAuth" -}}
authOptions:
  mode: token
  {{- with .Values.ray.authSecret }}
  secretName: {{ . | quote }}
  {{- end }}
{{- end -}}

{{/* The pod template of one group of Ray nodes.
     root; component: training or serving; group: its values; part: the values of the part, for its
     extras; settings: variables by name; resources, and where: their path in the values; ports by name;
     readinessPath and readinessPort; image: in place of ray.image;
     noticeSeconds: how long before its end it says so; autoscaled: it is the head of a cluster with an
     autoscaler; spread: its pods do the same work; counts: how many there are, where KubeRay makes a new
     cluster for another number.
     KubeRay makes new pods when the hash of a cluster differs, and leaves out of it tolerations (an
     admission may add some) and numbers of pods (an autoscaler writes them): so a RayService with more
     replicas would stay as it is (rayservice_controller.go, shouldUpdateCluster). It takes annotations in. */}}
{{- define "cmcl.rayNode" -}}
{{- $spec := include "cmcl.rayNodeSpec" . -}}
{{- $own := printf "checksum/pods: %s" (list (fromYaml $spec) .counts | toJson | sha256sum) -}}
metadata: {{- include "cmcl.podMetadata" (dict "root" .root "component" .component "group" .group "own" $own) | nindent 2 }}
spec: {{- $spec | nindent 2 }}
{{- end -}}

{{- define "cmcl.rayNodeSpec" -}}
{{- include "cmcl.podSpec" (dict "root" .root "account" (include "cmcl.rayServiceAccount" .root) "group" .group) }}
{{- if or .spread .group.pod.topologySpreadConstraints }}
{{ include "cmcl.spread" . }}
{{- end }}
{{- with .noticeSeconds }}
terminationGracePeriodSeconds: {{ add . 30 }}
{{- end }}
containers:
  - name: ray
    {{- $image := default .root.Values.ray.image .image }}
    image: {{ include "cmcl.image" (dict "root" .root "image" $image) | quote }}
    imagePullPolicy: {{ default .root.Values.ray.image.pullPolicy $image.pullPolicy }}
    # KubeRay copies this to the init container that it adds to workers.
    securityContext: {{- include "cmcl.containerSecurityContext" .root | nindent 6 }}
    env:
      - name: RAY_USAGE_STATS_ENABLED
        value: "0"
      {{- include "cmcl.userEnv" .root | nindent 6 }}
      {{- with include "cmcl.storeEnv" .root }}
      {{- trim . | nindent 6 }}
      {{- end }}
      {{- with include "cmcl.extraEnv" (merge dict .part.extraEnv .settings) }}
      {{- trim . | nindent 6 }}
      {{- end }}
    {{- with .ports }}
    ports:
      {{- range $name, $port := . }}
      - name: {{ $name }}
        containerPort: {{ $port }}
      {{- end }}
    {{- end }}
    {{- with .noticeSeconds }}
    # In a preStop hook, because Ray ends a node's processes at SIGTERM.
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
    resources: {{- include "cmcl.resources" . | nindent 6 }}
    volumeMounts:
      {{- include "cmcl.volumeMounts" .root | nindent 6 }}
      {{- with .part.extraVolumeMounts }}
      {{- include "cmcl.canonical" . | nindent 6 }}
      {{- end }}
volumes:
  - name: tmp
    emptyDir: {}
  - name: home
    emptyDir: {}
  {{- with include "cmcl.storeVolume" .root }}
  {{- trim . | nindent 2 }}
  {{- end }}
  {{- if .autoscaled }}
  {{- include "cmcl.autoscalerVolume" . | nindent 2 }}
  {{- end }}
  {{- with .part.extraVolumes }}
  {{- include "cmcl.canonicalVolumes" (dict "volumes" . "where" (printf "%s.extraVolumes" $.component)) | nindent 2 }}
  {{- end }}
{{- end -}}
