{{/* Ingress and HTTPRoute of an HTTP port. root; component: service or serving, as the path of the values; values;
     name; service: the Service, on port 8000. */}}
{{/* Exposed paths. They exclude metrics, internal routes (/internal) and
     routes of Ray Serve (/-/). Prefixes, because OpenShift creates no Route for an exact path. */}}
{{- define "cmcl.routedPaths" -}}
{{- $paths := list "/v1" "/healthz" "/readyz" -}}
{{- if eq .component "service" -}}
{{- $paths = concat $paths (list "/docs" "/openapi.json") -}}
{{- if and .root.Values.access.page.enabled (not .root.Values.access.page.proxyService) -}}
{{- $paths = append $paths "/ui" -}}
{{- end -}}
{{- end -}}
{{- toYaml $paths -}}
{{- end -}}

{{/* What goes to the proxy that signs browsers in, and nothing else: it adds a token to requests that any site makes a
     browser send, and only the page checks where they come from. */}}
{{- define "cmcl.proxiedPaths" -}}
{{- $page := .root.Values.access.page -}}
{{- $isProxied := and (eq .component "service") $page.enabled $page.proxyService -}}
{{- toYaml (ternary (list "/ui" "/oauth2") list (not (empty $isProxied))) -}}
{{- end -}}

{{/* The control plane always requires keys (CMCL_AUTH), the endpoint if it has a public key. */}}
{{- define "cmcl.keysAreAsked" -}}
{{- $endpoint := .root.Values.access.endpoint -}}
{{- if and (eq .component "serving") (not $endpoint.publicKey) (not $endpoint.open) -}}
{{- fail (printf "serving.%s is set, but access.endpoint.publicKey is empty: all clients could use the endpoint without a key. Set access.endpoint.signingSecret and publicKey (docs/security.md), or access.endpoint.open to true to permit this" .kind) -}}
{{- end -}}
{{- end -}}

{{/* Host names that an endpoint without keys accepts: those of its Service and of the values. All if it
     is open. */}}
{{- define "cmcl.endpointHosts" -}}
{{- $endpoint := .Values.access.endpoint -}}
{{- $service := include "cmcl.servingService" . -}}
{{- $names := list $service -}}
{{- range list "" ".svc" ".svc.cluster.local" -}}
{{- $names = append $names (printf "%s.%s%s" $service $.Release.Namespace .) -}}
{{- end -}}
{{- toYaml (ternary (list "*") (concat $names $endpoint.allowedHosts) $endpoint.open) -}}
{{- end -}}

{{- define "cmcl.ingress" -}}
{{- if .values.hosts -}}
{{- include "cmcl.keysAreAsked" (merge (dict "kind" "ingress.hosts") .) -}}
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  name: {{ .name | quote }}
  labels: {{- include "cmcl.labels" . | nindent 4 }}
  {{- with .values.annotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  {{- with .values.className }}
  ingressClassName: {{ . | quote }}
  {{- end }}
  {{- with .values.tlsSecret }}
  tls:
    - hosts: {{- toYaml $.values.hosts | nindent 8 }}
      secretName: {{ . | quote }}
  {{- end }}
  rules:
    {{- range $host := .values.hosts }}
    - host: {{ $host | quote }}
      http:
        paths:
          {{- range include "cmcl.routedPaths" $ | fromYamlArray }}
          - path: {{ . }}
            pathType: Prefix
            backend:
              service:
                name: {{ $.service | quote }}
                port:
                  number: 8000
          {{- end }}
          {{- range include "cmcl.proxiedPaths" $ | fromYamlArray }}
          - path: {{ . }}
            pathType: Prefix
            backend:
              service:
                name: {{ $.root.Values.access.page.proxyService | quote }}
                port:
                  number: 80
          {{- end }}
    {{- end }}
{{- else if or .values.className .values.annotations .values.tlsSecret -}}
{{- fail (printf "%s.ingress has no hosts: list the names of an Ingress, or remove its other values" .component) -}}
{{- end -}}
{{- end -}}

{{- define "cmcl.httpRoute" -}}
{{- if .values.parentRefs -}}
{{- include "cmcl.keysAreAsked" (merge (dict "kind" "httpRoute.parentRefs") .) -}}
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata:
  name: {{ .name | quote }}
  labels: {{- include "cmcl.labels" . | nindent 4 }}
spec:
  parentRefs: {{- toYaml .values.parentRefs | nindent 4 }}
  {{- with .values.hostnames }}
  hostnames: {{- toYaml . | nindent 4 }}
  {{- end }}
  rules:
    - matches:
        {{- range include "cmcl.routedPaths" . | fromYamlArray }}
        - path: {type: PathPrefix, value: {{ . }}}
        {{- end }}
      backendRefs:
        - name: {{ .service | quote }}
          port: 8000
    {{- with include "cmcl.proxiedPaths" . | fromYamlArray }}
    - matches:
        {{- range . }}
        - path: {type: PathPrefix, value: {{ . }}}
        {{- end }}
      backendRefs:
        - name: {{ $.root.Values.access.page.proxyService | quote }}
          port: 80
    {{- end }}
{{- else if .values.hostnames -}}
{{- fail (printf "%s.httpRoute.parentRefs is empty: list the gateways that the HTTPRoute attaches to" .component) -}}
{{- end -}}
{{- end -}}
