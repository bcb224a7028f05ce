{{/* Pods of this release, as peers of a NetworkPolicy: root, components. */}}
{{- define "cmcl.pods" -}}
- podSelector:
    matchLabels:
      app.kubernetes.io/part-of: {{ .root.Chart.Name }}
      app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
    matchExpressions:
      - key: app.kubernetes.io/component
        operator: In
        values: [{{ join ", " .components }}]
{{- end -}}

{{/* Pod selector of a policy: root, components. */}}
{{- define "cmcl.policyFor" -}}
podSelector:
  matchLabels:
    app.kubernetes.io/part-of: {{ .root.Chart.Name }}
    app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
  matchExpressions:
    - key: app.kubernetes.io/component
      operator: In
      values: [{{ join ", " .components }}]
policyTypes:
  - Ingress
  {{- if .root.Values.networkPolicy.restrictEgress }}
  - Egress
  {{- end }}
{{- end -}}

{{/* Peers that may call an HTTP port: all, or the listed ones and the chart's own pods. */}}
{{- define "cmcl.fromClients" -}}
{{- with .root.Values.networkPolicy.clients -}}
from:
{{ toYaml . | indent 2 }}
{{ include "cmcl.pods" (dict "root" $.root "components" $.components) | indent 2 }}
{{- end }}
{{- end -}}

{{- define "cmcl.fromMonitoring" -}}
{{- with .Values.networkPolicy.monitoring -}}
from:
{{ toYaml . | indent 2 }}
{{- end }}
{{- end -}}

{{/* Egress of every part in addition to its peers. The user's rules list store and database. */}}
{{- define "cmcl.commonEgress" -}}
{{- $policy := .Values.networkPolicy -}}
{{- if and (not $policy.egress) (or (not (include "cmcl.storeIsVolume" .)) (not (include "cmcl.usesSqlite" .))) }}
{{- fail "networkPolicy.restrictEgress is true and networkPolicy.egress is empty: no pod could reach the store or the database; list them in networkPolicy.egress" }}
{{- end -}}
- to: {{- toYaml $policy.dns | nindent 4 }}
  ports:
    {{- range $policy.dnsPorts }}
    - {port: {{ . }}, protocol: UDP}
    - {port: {{ . }}, protocol: TCP}
    {{- end }}
{{- with $policy.egress }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "cmcl.kubernetesApiEgress" -}}
{{- $api := .Values.networkPolicy.kubernetesApi -}}
- ports:
    {{- range $api.ports }}
    - {port: {{ . }}, protocol: TCP}
    {{- end }}
  {{- with $api.cidrs }}
  to:
    {{- range . }}
    - ipBlock: {cidr: {{ . | quote }}}
    {{- end }}
  {{- end }}
{{- end -}}
