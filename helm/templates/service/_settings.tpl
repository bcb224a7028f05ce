{{/* Every setting of the control plane (service/core/settings.py); a test compares the names.
     Integers pass through int64, because 1048576 would otherwise be rendered as 1.048576e+06. */}}
{{- define "cmcl.settings" -}}
{{- if include "cmcl.usesSqlite" . }}
CMCL_DATABASE_URL: {{ include "cmcl.sqliteUrl" . }}
{{- end }}
CMCL_STORE_URI: {{ .Values.store.uri | quote }}
CMCL_ALLOWED_PREFIXES: {{ join "," .Values.service.allowedPrefixes | quote }}
# The launcher `process` would train inside this image, which has no torch.
CMCL_LAUNCHER: {{ .Values.training.launcher }}
{{- if include "cmcl.makesRayJobs" . }}
{{- include "cmcl.rayJobSettings" . }}
{{- else }}
CMCL_RAY_ADDRESS: {{ printf "http://%s-head-svc:8265" (include "cmcl.trainingCluster" .) | quote }}
{{- end }}
CMCL_ENCODERS: {{ .Values.encoders | toJson | quote }}
CMCL_RANKS: {{ .Values.training.ranks | int64 | quote }}
{{- if gt (int .Values.training.minRanks) (int .Values.training.ranks) }}
{{- fail (printf "training.minRanks is %d; it must be at most training.ranks, which is %d" (int .Values.training.minRanks) (int .Values.training.ranks)) }}
{{- end }}
{{- with .Values.training.minRanks }}
CMCL_MIN_RANKS: {{ . | int64 | quote }}
{{- end }}
{{- with include "cmcl.attemptsAtOnce" . }}
CMCL_ATTEMPTS_AT_ONCE: {{ . | quote }}
{{- end }}
CMCL_GPUS_PER_RANK: {{ .Values.training.gpusPerRank | quote }}
CMCL_RANKS_IDLE_SECONDS: {{ .Values.training.ranksIdleSeconds | quote }}
CMCL_RUNTIME_ENV: {{ .Values.training.runtimeEnv | toJson | quote }}
# The proxy of the pod listens at port 8000.
CMCL_HOST: "127.0.0.1"
CMCL_BEHIND_PROXY: "true"
CMCL_TRUSTED_PROXIES: "127.0.0.1"
CMCL_PORT: "8001"
CMCL_MAX_ATTEMPTS: {{ .Values.service.maxAttempts | int64 | quote }}
{{- $cpus := mul .Values.preparation.pods .Values.preparation.cpusPerPod }}
CMCL_PREPARE_WORKERS: {{ $cpus | quote }}
CMCL_PREPARE_GPUS_PER_WORKER: {{ divf (include "cmcl.gpusOfPreparation" . | int) $cpus | quote }}
CMCL_PREPARE_MEMORY_PER_POD: {{ include "cmcl.memoryOfJobPods" (dict "root" . "cpus" $cpus) | quote }}
CMCL_QUEUE_DEADLINE_SECONDS: {{ .Values.service.queueDeadlineSeconds | int64 | quote }}
CMCL_RUN_DEADLINE_SECONDS: {{ .Values.service.runDeadlineSeconds | int64 | quote }}
CMCL_UPLOAD_BYTES_MAX: {{ .Values.service.uploadBytesMax | int64 | quote }}
CMCL_UPLOAD_BYTES_PER_OWNER_MAX: {{ .Values.service.uploadBytesPerOwnerMax | int64 | quote }}
CMCL_WEBHOOK_PREFIXES: {{ join "," .Values.service.webhookPrefixes | quote }}
# Required, because the port is reachable from the network. With keys, any Host is accepted.
CMCL_AUTH: "on"
CMCL_ALLOWED_HOSTS: ""
CMCL_MODELS_PER_OWNER: {{ .Values.access.modelsPerOwner | int64 | quote }}
CMCL_RUNNING_JOBS_PER_OWNER: {{ .Values.access.runningJobsPerOwner | int64 | quote }}
CMCL_OWNERS: {{ .Values.access.owners | toJson | quote }}
CMCL_HEADS_BYTES_MAX: {{ div (.Values.serving.args.maxHeadsBytes | int64) 2 | quote }}
{{- with .Values.access.oidc }}
CMCL_OIDC_OWNER_CLAIM: {{ .ownerClaim | quote }}
{{- if .issuer }}
CMCL_OIDC_ISSUER: {{ .issuer | quote }}
CMCL_OIDC_AUDIENCE: {{ required "access.oidc.audience is missing: tokens for other services would be accepted" .audience | quote }}
{{- end }}
{{- end }}
{{- with .Values.access.page }}
CMCL_PAGE: {{ ternary "on" "off" .enabled | quote }}
{{- if .url }}
CMCL_PAGE_URL: {{ .url | quote }}
{{- end }}
{{- if and .proxyService (not $.Values.access.oidc.issuer) }}
{{- fail "access.page.proxyService is set, but access.oidc.issuer is empty: the tokens that it sends would not be accepted" }}
{{- end }}
{{- end }}
CMCL_EMBEDDINGS_URL: {{ printf "http://%s:8000" (include "cmcl.servingService" .) | quote }}
CMCL_LOG_LEVEL: {{ .Values.service.logLevel | quote }}
{{- end -}}

{{/* Attempts at a time: as many as the chart's pods of ranks have room for. The service cannot tell: other pods of
     the cluster have CPUs too, and an autoscaler adds pods. Empty for the service's default. */}}
{{- define "cmcl.attemptsAtOnce" -}}
{{- $training := .Values.training -}}
{{- if not (kindIs "invalid" $training.attemptsAtOnce) -}}
{{ $training.attemptsAtOnce | int64 }}
{{- else if not (include "cmcl.makesRayJobs" .) -}}
{{- $pods := ternary $training.autoscaling.maxPods 0 $training.autoscaling.enabled -}}
{{ max 1 (div (mul $pods $training.ranksPerPod) $training.ranks) }}
{{- end -}}
{{- end -}}

{{/* Bytes that units may reserve in each pod of a RayJob of preparation, which are pods like those of ranks; 0 with
     another launcher. root; cpus: of all pods. */}}
{{- define "cmcl.memoryOfJobPods" -}}
{{- if include "cmcl.makesRayJobs" .root -}}
{{- $perPod := .root.Values.training.ranksPerPod -}}
{{- $pods := include "cmcl.podCount" (dict "count" .cpus "perPod" $perPod) | int -}}
{{- $encoders := divf (include "cmcl.encodersOfPreparation" .root | int) $pods | ceil | int -}}
{{ include "cmcl.memoryOfUnits" (dict "root" .root "resources" .root.Values.training.workers.resources "where" "training.workers.resources" "cpus" $perPod "encoders" $encoders) }}
{{- else -}}
0
{{- end -}}
{{- end -}}

{{- define "cmcl.rayJobSettings" -}}
{{- $jobs := .Values.training.rayJobs }}
{{- $classes := dict }}
{{- range $priority, $class := $jobs.priorityClasses }}
{{- if $class }}
{{- $_ := set $classes $priority $class }}
{{- end }}
{{- end }}
CMCL_KUBERAY_IMAGE: {{ include "cmcl.image" (dict "root" . "image" .Values.ray.image) | quote }}
CMCL_KUBERAY_RELEASE: {{ .Release.Name | quote }}
CMCL_KUBERAY_OWNER: {{ include "cmcl.podsName" . }}
CMCL_KUBERAY_SERVICE_ACCOUNT: {{ include "cmcl.rayServiceAccount" . | quote }}
CMCL_KUBERAY_QUEUE: {{ $jobs.queue | quote }}
CMCL_KUBERAY_PRIORITY_CLASSES: {{ $classes | toJson | quote }}
CMCL_KUBERAY_RANKS_PER_POD: {{ .Values.training.ranksPerPod | int64 | quote }}
CMCL_KUBERAY_GPU_RESOURCE: {{ .Values.training.gpuResource | quote }}
CMCL_KUBERAY_POD_TEMPLATE: {{ include "cmcl.podsFolder" . }}/pods.yaml
CMCL_KUBERAY_SUBMISSION_MODE: {{ $jobs.submissionMode }}
{{- end -}}

{{/* The ConfigMap with the pod templates of RayJobs, which also owns the RayJobs. */}}
{{- define "cmcl.podsName" -}}
{{ include "cmcl.fullname" . }}-pods
{{- end -}}

{{/* Path of the pod templates of RayJobs. */}}
{{- define "cmcl.podsFolder" -}}
/etc/cmcl
{{- end -}}

{{- define "cmcl.sqliteUrl" -}}
sqlite:////var/lib/cmcl/database/cmcl.db
{{- end -}}

{{- define "cmcl.databaseEnv" -}}
{{- with .Values.database.existingSecret }}
- name: CMCL_DATABASE_URL
  valueFrom:
    secretKeyRef:
      name: {{ . | quote }}
      key: {{ $.Values.database.secretKey | quote }}
{{- end }}
{{- end -}}

{{- define "cmcl.signingEnv" -}}
{{- with .Values.access.endpoint }}
{{- if .signingSecret }}
- name: CMCL_SNAPSHOT_SIGNING_KEY
  valueFrom:
    secretKeyRef:
      name: {{ .signingSecret | quote }}
      key: signing-key
{{- end }}
{{- end }}
{{- end -}}

{{/* Secret settings, which are not in the ConfigMap. */}}
{{- define "cmcl.secretEnv" -}}
{{- include "cmcl.databaseEnv" . }}
- name: CMCL_ADMIN_KEY
  valueFrom:
    secretKeyRef:
      name: {{ include "cmcl.adminSecret" . | quote }}
      key: admin-key
      optional: {{ not .Values.access.adminSecret }}
{{- with .Values.access.metricsSecret }}
- name: CMCL_METRICS_KEY
  valueFrom:
    secretKeyRef:
      name: {{ . | quote }}
      key: metrics-key
{{- end }}
{{- with .Values.access.encryptionSecret }}
- name: CMCL_ENCRYPTION_KEY
  valueFrom:
    secretKeyRef:
      name: {{ . | quote }}
      key: encryption-key
{{- end }}
{{- include "cmcl.signingEnv" . }}
{{- if not (include "cmcl.makesRayJobs" .) }}
# Ray's client sends the token of the training cluster only in this mode.
- name: RAY_AUTH_MODE
  value: token
- name: RAY_AUTH_TOKEN
  valueFrom:
    secretKeyRef:
      name: {{ include "cmcl.trainingAuthSecret" . | quote }}
      key: auth_token
{{- end }}
{{- end -}}
