{{- define "cmcl.servingNode" -}}
component: serving
part: {{- toYaml .Values.serving | nindent 2 }}
settings: {{- include "cmcl.servingSettings" . | nindent 2 }}
{{- end -}}

{{/* As in cmcl/haproxy.py, which gives the reasons; a test compares them. */}}
{{- define "cmcl.servingSettings" -}}
RAY_SERVE_ENABLE_HA_PROXY: "1"
RAY_SERVE_THROUGHPUT_OPTIMIZED: "1"
RAY_SERVE_HAPROXY_BINARY_PATH: /opt/cmcl/bin/cmcl-haproxy
RAY_SERVE_HAPROXY_TUNE_BUFSIZE: "65536"
RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S: "30"
RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S: "660"
RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S: "120"
RAY_SERVE_HAPROXY_RETRY_ON: conn-failure empty-response junk-response
RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S: "1"
CMCL_ENDPOINT_TRUSTED_PROXIES: {{ join "," .Values.serving.trustedProxies | quote }}
RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S: {{ .Values.serving.drainSeconds | quote }}
RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S: {{ .Values.serving.drainSeconds | quote }}
{{- include "cmcl.tracingSettings" . }}
{{- end -}}

{{/* Readiness probe of a node: its proxy responds. */}}
{{- define "cmcl.proxyNode" -}}
readinessPath: /-/healthz
readinessPort: 8000
ports:
  serve: 8000
{{- end -}}

{{- define "cmcl.servingHead" -}}
{{- $head := .Values.serving.head -}}
{{- $node := include "cmcl.servingNode" . | fromYaml -}}
{{- $own := dict "root" . "group" $head "resources" $head.resources "where" "serving.head.resources" "readinessPath" "/api/healthz" "readinessPort" 52365 "ports" (dict "gcs-server" 6379 "dashboard" 8265 "client" 10001 "serve" 8000) -}}
{{- if .Values.ray.oneCluster -}}
{{- /* Drivers of attempts run here. */ -}}
{{- $_ := set $own "autoscaled" (include "cmcl.autoscales" .) -}}
{{- $_ := set $own "settings" (merge dict $node.settings (include "cmcl.trainingSettings" . | fromYaml)) -}}
{{- end -}}
{{- include "cmcl.rayNode" (merge $own $node) -}}
{{- end -}}

{{/* Custom resources that replicas and encoders request (workers/serve/encoders/deployment.py), each on their own
     pods. Not CPUs, which ranks request. JSON in single quotes, which a shell, Ray's autoscaler and KubeRay read. */}}
{{- define "cmcl.placesFor" -}}
num-cpus: "0"
resources: {{ toJson .resources | squote | quote }}
{{- end -}}

{{/* The worker group of the replicas. */}}
{{- define "cmcl.replicasGroup" -}}
{{- $serving := .Values.serving -}}
{{- $pods := include "cmcl.podCount" (dict "count" $serving.replicas "perPod" $serving.replicasPerPod) -}}
{{- $node := merge (include "cmcl.servingNode" . | fromYaml) (include "cmcl.proxyNode" . | fromYaml) -}}
groupName: replicas
replicas: {{ $pods }}
minReplicas: {{ $pods }}
maxReplicas: {{ $pods }}
scaleStrategy: {}
# Twice the number of replicas, because changed arguments start new replicas next to the old ones.
rayStartParams: {{- include "cmcl.placesFor" (dict "resources" (dict "cmcl_replica" (mul 2 $serving.replicasPerPod))) | nindent 2 }}
template: {{- include "cmcl.rayNode" (merge (dict "root" . "group" $serving.workers "resources" $serving.workers.resources "where" "serving.workers.resources" "noticeSeconds" $serving.drainSeconds "spread" true "counts" $pods) $node) | nindent 2 }}
{{- end -}}
