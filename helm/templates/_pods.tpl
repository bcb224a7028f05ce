{{/* Pod Security "restricted", for pods and for containers. */}}
{{- define "cmcl.podSecurityContext" -}}
runAsNonRoot: true
{{- if .Values.podSecurity.fixedUser }}
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "cmcl.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* Labels of a pod, with those of the user. root, component, group. */}}
{{- define "cmcl.podLabels" -}}
{{ include "cmcl.selectorLabels" . }}
{{- with .group.pod.labels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Annotations of a pod. root, group; own: the chart's annotations, as text. */}}
{{- define "cmcl.podAnnotations" -}}
{{- with .group.pod.annotations }}
{{- toYaml . }}
{{ end }}
{{- with .root.Values.secretsRevision -}}
cmcl/secrets: {{ . | quote }}
{{ end }}
{{- with .own }}
{{- . }}
{{- end }}
{{- end -}}

{{- define "cmcl.podMetadata" -}}
labels: {{- include "cmcl.podLabels" . | nindent 2 }}
{{- with include "cmcl.podAnnotations" . | trim }}
annotations: {{- . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* The common part of all pod specs.
     root; account: its service account; group: where users choose nodes and priority;
     token: whether it uses the Kubernetes API. */}}
{{- define "cmcl.podSpec" -}}
serviceAccountName: {{ .account | quote }}
# Only a service that creates RayJobs uses the Kubernetes API; workload identity projects a separate token.
automountServiceAccountToken: {{ default false .token }}
# For a Service named cmcl, Kubernetes would set CMCL_PORT=tcp://..., which is a setting of cmcl.
enableServiceLinks: false
securityContext: {{- include "cmcl.podSecurityContext" .root | nindent 2 }}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .group.pod }}
{{- with .nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{- include "cmcl.canonical" . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity: {{- include "cmcl.canonical" . | nindent 2 }}
{{- end }}
{{- with .priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with .runtimeClassName }}
runtimeClassName: {{ . | quote }}
{{- end }}
{{- with .dnsConfig }}
dnsConfig: {{- include "cmcl.canonical" . | nindent 2 }}
{{- end }}
{{- with .hostAliases }}
hostAliases: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end -}}

{{/* The constraints of the user, or: prefer zones, then nodes. root, component, group. */}}
{{- define "cmcl.spread" -}}
topologySpreadConstraints:
{{- if .group.pod.topologySpreadConstraints }}
{{ include "cmcl.canonical" .group.pod.topologySpreadConstraints | indent 2 }}
{{- else }}
{{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "cmcl.selectorLabels" $ | nindent 8 }}
{{- end }}
{{- end }}
{{- end -}}

{{/* The entries of a container's `env` for a map of texts and sources. */}}
{{- define "cmcl.extraEnv" -}}
{{- range $name, $value := . }}
- name: {{ $name | quote }}
  {{- if kindIs "map" $value }}
  {{- if hasKey $value "resourceFieldRef" }}
  {{- /* The default that Go's types write. */}}
  {{- $value = mergeOverwrite (dict "resourceFieldRef" (dict "divisor" "0")) $value }}
  {{- end }}
  valueFrom: {{- toYaml $value | nindent 4 }}
  {{- else if $value }}
  value: {{ $value | quote }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* A user id assigned by the cluster has no entry in /etc/passwd, but Ray and torch need a name and a home. */}}
{{- define "cmcl.userEnv" -}}
- name: HOME
  value: /home/cmcl
- name: USER
  value: cmcl
{{- end -}}
