{{/* Prefix of all names. KubeRay permits 47 characters for a RayService, truncates names of Secrets at
     50 and requires a letter first; "-serving" and 6 further characters must fit. */}}
{{- define "cmcl.fullname" -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) (contains .Chart.Name .Release.Name) -}}
{{- $full = default $full .Values.fullnameOverride | trunc 36 | trimSuffix "-" -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $full) -}}
{{- fail (printf "the name %q must start with a letter and have only a-z, 0-9 and '-': choose another release name or set fullnameOverride" $full) -}}
{{- end -}}
{{- $full -}}
{{- end -}}

{{/* Labels of every pod, used by selectors; `component` is service, training, serving, migration,
     rebuild or test. Not app.kubernetes.io/name: on Ray's pods that is KubeRay's, whose Service for the head of
     a RayService selects by its own value and would find none (kuberay#2648). */}}
{{- define "cmcl.selectorLabels" -}}
app.kubernetes.io/part-of: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* Selector of the control plane's pods. A Deployment's selector is immutable. */}}
{{- define "cmcl.serviceSelector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: service
{{- end -}}

{{- define "cmcl.labels" -}}
{{ include "cmcl.ownLabels" . }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "cmcl.ownLabels" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
{{ include "cmcl.selectorLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "cmcl.image" -}}
{{- with .root.Values.imageRegistry }}{{ . }}/{{ end -}}
{{- with .image }}{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ default $.root.Chart.AppVersion .tag }}{{ end }}{{ end -}}
{{- end -}}

{{- define "cmcl.serviceAccount" -}}
{{ default (include "cmcl.fullname" .) .Values.service.serviceAccount.name }}
{{- end -}}

{{/* The service's account does not exist before an install, so the migration has its own, with the same identity. */}}
{{- define "cmcl.migrationAccount" -}}
{{ default (printf "%s-migration" (include "cmcl.fullname" .)) .Values.service.serviceAccount.name }}
{{- end -}}

{{- define "cmcl.rayServiceAccount" -}}
{{ default (printf "%s-ray" (include "cmcl.fullname" .)) .Values.ray.serviceAccount.name }}
{{- end -}}

{{- define "cmcl.servingName" -}}
{{ include "cmcl.fullname" . }}-serving
{{- end -}}

{{/* The Service that KubeRay creates for the replicas. */}}
{{- define "cmcl.servingService" -}}
{{ include "cmcl.servingName" . }}-serve-svc
{{- end -}}

{{- define "cmcl.adminSecret" -}}
{{ default (printf "%s-admin" (include "cmcl.fullname" .)) .Values.access.adminSecret }}
{{- end -}}

{{/* Non-empty without PostgreSQL. */}}
{{- define "cmcl.usesSqlite" -}}
{{- if not .Values.database.existingSecret }}true{{ end -}}
{{- end -}}

{{/* Non-empty if each attempt is a RayJob. */}}
{{- define "cmcl.makesRayJobs" -}}
{{- if eq .Values.training.launcher "kuberay" }}true{{ end -}}
{{- end -}}
