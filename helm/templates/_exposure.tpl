{{/* How an HTTP port is reached from outside. root; component; where: the path of the values;
     values; name; service and port to lead to. */}}
{{/* What the world may ask for: neither metrics, nor what the parts say to each other (/internal), nor
     what Ray Serve adds (/-/). Prefixes, because OpenShift makes no Route of an exact path. */}}
{{- define "cmcl.routedPaths" -}}
{{- $paths := list "/v1" "/healthz" "/readyz" -}}
{{- if eq .component "service" -}}
{{- $paths = concat $paths (list "/docs" "/redoc" "/openapi.json") -}}
{{- end -}}
{{- toYaml $paths -}}
{{- end -}}

{{- define "cmcl.ingress" -}}
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  name: {{ .name }}
  labels: {{- include "cmcl.labels" . | nindent 4 }}
  {{- with .values.annotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  {{- with .values.className }}
  ingressClassName: {{ . }}
  {{- end }}
  {{- $host := required (printf "%s.ingress.host is missing: under which name is it to answer?" .where) .values.host }}
  {{- with .values.tlsSecret }}
  tls:
    - hosts: [{{ $host | quote }}]
      secretName: {{ . }}
  {{- end }}
  rules:
    - host: {{ $host | quote }}
      http:
        paths:
          {{- range include "cmcl.routedPaths" . | fromYamlArray }}
          - path: {{ . }}
            pathType: Prefix
            backend:
              service:
                name: {{ $.service }}
                port:
                  number: {{ $.port }}
          {{- end }}
{{- end -}}

{{- define "cmcl.httpRoute" -}}
{{- if not .values.parentRefs }}
{{- fail (printf "%s.httpRoute.parentRefs is empty: which gateway is to lead to it?" .where) }}
{{- end -}}
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata:
  name: {{ .name }}
  labels: {{- include "cmcl.labels" . | nindent 4 }}
  {{- with .values.annotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
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
        - name: {{ .service }}
          port: {{ .port }}
{{- end -}}
