{{/* Non-empty when the store is a folder on a volume. */}}
{{- define "cmcl.storeIsVolume" -}}
{{- if hasPrefix "file://" .Values.store.uri }}true{{ end -}}
{{- end -}}

{{- define "cmcl.storeClaim" -}}
{{ default (printf "%s-store" (include "cmcl.fullname" .)) .Values.store.volume.existingClaim }}
{{- end -}}

{{- define "cmcl.databaseClaim" -}}
{{ default (printf "%s-database" (include "cmcl.fullname" .)) .Values.database.volume.existingClaim }}
{{- end -}}

{{/* How boto3 finds its way, for every pod that reads the store. */}}
{{- define "cmcl.storeEnv" -}}
{{- with .Values.store.endpointUrl }}
- name: AWS_ENDPOINT_URL
  value: {{ . | quote }}
{{- end }}
{{- with .Values.store.region }}
- name: AWS_DEFAULT_REGION
  value: {{ . | quote }}
{{- end }}
{{- with .Values.store.existingSecret }}
{{- range list "AWS_ACCESS_KEY_ID" "AWS_SECRET_ACCESS_KEY" }}
- name: {{ . }}
  valueFrom:
    secretKeyRef:
      name: {{ $.Values.store.existingSecret }}
      key: {{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{/* The root filesystem is read-only: what programs write besides the store. */}}
{{- define "cmcl.volumeMounts" -}}
- name: tmp
  mountPath: /tmp
- name: home
  mountPath: /home/cmcl
{{- if include "cmcl.storeIsVolume" . }}
- name: store
  mountPath: {{ .Values.store.uri | trimPrefix "file://" }}
{{- end }}
{{- end -}}

{{- define "cmcl.storeVolume" -}}
{{- if include "cmcl.storeIsVolume" . }}
- name: store
  persistentVolumeClaim:
    claimName: {{ include "cmcl.storeClaim" . }}
{{- end }}
{{- end -}}
