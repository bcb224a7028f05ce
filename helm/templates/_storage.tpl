{{/* Non-empty if the store is a folder on a volume. */}}
{{- define "cmcl.storeIsVolume" -}}
{{- if hasPrefix "file://" .Values.store.uri }}true{{ end -}}
{{- end -}}

{{- define "cmcl.storeClaim" -}}
{{ default (printf "%s-store" (include "cmcl.fullname" .)) .Values.store.volume.existingClaim }}
{{- end -}}

{{- define "cmcl.databaseClaim" -}}
{{ default (printf "%s-database" (include "cmcl.fullname" .)) .Values.database.volume.existingClaim }}
{{- end -}}

{{/* Environment of boto3, for every pod that reads the store. */}}
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
      name: {{ $.Values.store.existingSecret | quote }}
      key: {{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Writable folders, because the root filesystem is read-only. */}}
{{- define "cmcl.volumeMounts" -}}
- name: tmp
  mountPath: /tmp
- name: home
  mountPath: /home/cmcl
{{- if include "cmcl.storeIsVolume" . }}
- name: store
  mountPath: {{ .Values.store.uri | trimPrefix "file://" | quote }}
{{- end }}
{{- end -}}

{{/* Only pods of one node can mount a ReadWriteOnce volume. Several pods of a kind are meant for several
     nodes, where all but one would wait for the volume permanently. */}}
{{- define "cmcl.checkStoreIsShared" -}}
{{- if and (include "cmcl.storeIsVolume" .) (eq .Values.store.volume.accessMode "ReadWriteOnce") -}}
{{- $serving := .Values.serving -}}
{{- $training := .Values.training -}}
{{- $encoders := 0 -}}
{{- range .Values.encoders -}}
{{- $encoders = add $encoders (default 1 .replicas) -}}
{{- end -}}
{{- $ranks := include "cmcl.podCount" (dict "count" $training.ranks "perPod" $training.ranksPerPod) | int -}}
{{- if include "cmcl.autoscales" . -}}
{{- $ranks = max $ranks $training.autoscaling.maxPods -}}
{{- end -}}
{{- $pods := dict
  "serving.replicas and replicasPerPod ask for" (include "cmcl.podCount" (dict "count" $serving.replicas "perPod" $serving.replicasPerPod) | int)
  "encoders ask for" $encoders
  "preparation.pods asks for" .Values.preparation.pods
  "training.ranks, ranksPerPod and autoscaling ask for" $ranks
  "service.replicas or autoscaling ask for" (ternary 2 1 (and (not (include "cmcl.usesSqlite" .)) (not (empty (include "cmcl.hasReplicas" .))))) -}}
{{- range $who, $number := $pods -}}
{{- if gt (int $number) 1 -}}
{{- fail (printf "store.uri is %s, on a volume with store.volume.accessMode ReadWriteOnce, which only pods of one node can mount, and %s %d pods: set store.uri to s3://..., set accessMode to ReadWriteMany with a storage class that supports it, or request one pod" $.Values.store.uri $who (int $number)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "cmcl.storeVolume" -}}
{{- if include "cmcl.storeIsVolume" . }}
- name: store
  persistentVolumeClaim:
    claimName: {{ include "cmcl.storeClaim" . | quote }}
{{- end }}
{{- end -}}
