{{/* The first part of all names. KubeRay allows a RayService 47 characters, cuts names of Secrets at
     50 and wants a letter in front; "-serving" and its own 6 characters must fit behind. */}}
{{- define "cmcl.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- $full = default $full .Values.fullnameOverride | trunc 36 | trimSuffix "-" -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $full) -}}
{{- fail (printf "the name %q must start with a letter and have only a-z, 0-9 and '-': choose another release name or set fullnameOverride" $full) -}}
{{- end -}}
{{- $full -}}
{{- end -}}

{{/* What selects pods; `component` is service, training or serving. */}}
{{- define "cmcl.selectorLabels" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "cmcl.labels" -}}
{{ include "cmcl.selectorLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "cmcl.image" -}}
{{ .image.repository }}:{{ default .root.Chart.AppVersion .image.tag }}
{{- end -}}

{{/* Pod Security "restricted", for pods and for containers. */}}
{{- define "cmcl.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "cmcl.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* The part of a pod's spec that is the same everywhere.
     root; account: its service account; group: where users choose nodeSelector and tolerations;
     token: whether it talks to Kubernetes. */}}
{{- define "cmcl.podSpec" -}}
serviceAccountName: {{ .account }}
# Only who makes RayJobs talks to Kubernetes; workload identity projects a token of its own.
automountServiceAccountToken: {{ default false .token }}
# Kubernetes would set CMCL_PORT=tcp://... for a Service named cmcl, which is our own setting.
enableServiceLinks: false
securityContext: {{- include "cmcl.podSecurityContext" . | nindent 2 }}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .group.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .group.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
