{{- define "cmcl.rebuildName" -}}
{{ include "cmcl.fullname" . }}-rebuild
{{- end -}}

{{/* Non-empty during a restore, when no service may run. */}}
{{- define "cmcl.restores" -}}
{{- if and .Values.rebuild.enabled (eq .Values.rebuild.mode "restore") -}}
{{- if .Values.rebuild.schedule -}}
{{- fail (printf "rebuild.mode is restore and rebuild.schedule is %q: a restore runs once, on demand; leave the schedule empty" .Values.rebuild.schedule) -}}
{{- end -}}
true
{{- end -}}
{{- end -}}
