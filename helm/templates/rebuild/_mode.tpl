{{- define "cmcl.rebuildName" -}}
{{ include "cmcl.fullname" . }}-rebuild
{{- end -}}

{{/* Non-empty while a lost database is restored: no service may run beside that. */}}
{{- define "cmcl.restores" -}}
{{- if and .Values.rebuild.enabled (eq .Values.rebuild.mode "restore") -}}
{{- if .Values.rebuild.schedule -}}
{{- fail (printf "rebuild.mode is restore and rebuild.schedule is %q: a database is restored once, on demand; leave the schedule empty meanwhile" .Values.rebuild.schedule) -}}
{{- end -}}
true
{{- end -}}
{{- end -}}
