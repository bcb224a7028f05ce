{{/* Ray's autoscaler, which KubeRay adds to the head's pod. It may change pods and the RayCluster. Its
     token is mounted into its container only, because Ray's container runs arbitrary code. */}}
{{- define "cmcl.autoscaler" -}}
{{- $scaling := .Values.training.autoscaling -}}
enableInTreeAutoscaling: true
autoscalerOptions:
  version: v2
  idleTimeoutSeconds: {{ $scaling.idleSeconds }}
  imagePullPolicy: {{ .Values.ray.image.pullPolicy }}
  securityContext: {{- include "cmcl.containerSecurityContext" . | nindent 4 }}
  resources: {{- include "cmcl.resources" (dict "resources" $scaling.resources "where" "training.autoscaling.resources") | nindent 4 }}
  env: {{- include "cmcl.userEnv" . | nindent 4 }}
  volumeMounts:
    - name: tmp
      mountPath: /tmp
    - name: home
      mountPath: /home/cmcl
    - name: kubernetes-token
      mountPath: /var/run/secrets/kubernetes.io/serviceaccount
      readOnly: true
{{- end -}}

{{- define "cmcl.autoscalerVolume" -}}
- name: kubernetes-token
  projected:
    sources:
      - serviceAccountToken:
          path: token
          expirationSeconds: 3607
      - configMap:
          name: kube-root-ca.crt
          items:
            - {key: ca.crt, path: ca.crt}
      - downwardAPI:
          items:
            - path: namespace
              fieldRef: {fieldPath: metadata.namespace}
{{- end -}}

{{/* Non-empty if the training cluster has an autoscaler. */}}
{{- define "cmcl.autoscales" -}}
{{- if and .Values.training.autoscaling.enabled (not (include "cmcl.makesRayJobs" .)) }}true{{ end -}}
{{- end -}}
