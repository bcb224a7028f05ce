{{/* A quantity of Kubernetes in its canonical form: no fraction, the largest unit, a string.
     KubeRay writes a RayService back through Go's types when it adds its finalizer, and they write
     2048Mi as 2Gi, 0.5 as 500m and 1 as "1". Where what Helm applied differs from that, KubeRay becomes the
     owner of the whole list, and Helm's next server-side apply is a conflict.
     A text or a number; where: the path of the value, for the message. */}}
{{- define "cmcl.quantity" -}}
{{- $text := .value | toString -}}
{{- if kindIs "float64" .value -}}
{{- /* YAML's numbers: %v would write 1e+06. */ -}}
{{- $text = printf "%.9f" .value | trimSuffix "000000000" | trimSuffix "." -}}
{{- end -}}
{{- $number := regexFind "^[0-9]+(\\.[0-9]+)?" $text -}}
{{- $suffix := trimPrefix $number $text -}}
{{- $binary := hasSuffix "i" $suffix -}}
{{- $step := ternary 1024 1000 $binary -}}
{{- $units := ternary (list "" "Ki" "Mi" "Gi" "Ti" "Pi" "Ei") (list "m" "" "k" "M" "G" "T" "P" "E") $binary -}}
{{- if or (not $number) (not (has $suffix $units)) -}}
{{- fail (printf "%s is %q: write a number such as 5 or 0.5 and one of the units m, k, M, G, T, P, E, Ki, Mi, Gi, Ti, Pi, Ei, or no unit" .where $text) -}}
{{- end -}}
{{- $at := 0 -}}
{{- range $index, $unit := $units -}}
{{- if eq $unit $suffix -}}
{{- $at = $index -}}
{{- end -}}
{{- end -}}
{{- /* Down to a unit in which it is whole, then up as far as it stays whole. */ -}}
{{- $amount := float64 $number -}}
{{- range until (len $units) -}}
{{- if and (gt $at 0) (ne $amount (floor $amount)) -}}
{{- $amount = mulf $amount $step -}}
{{- $at = sub $at 1 | int -}}
{{- end -}}
{{- end -}}
{{- if ne $amount (floor $amount) -}}
{{- fail (printf "%s is %s, but must be a whole number of %s" .where $text (ternary "bytes" "thousandths" $binary)) -}}
{{- end -}}
{{- $amount = int64 $amount -}}
{{- range until (len $units) -}}
{{- if and (lt (add $at 1) (len $units)) $amount (eq (mod $amount $step) 0) -}}
{{- $amount = div $amount $step -}}
{{- $at = add $at 1 | int -}}
{{- end -}}
{{- end -}}
{{- if not $amount -}}
0
{{- else -}}
{{ $amount }}{{ index $units $at }}
{{- end -}}
{{- end -}}

{{/* Bytes of a quantity, as an integer. value; where. */}}
{{- define "cmcl.bytes" -}}
{{- $quantity := include "cmcl.quantity" . -}}
{{- $number := regexFind "^[0-9]+" $quantity -}}
{{- $bytes := int64 $number -}}
{{- range $units := list (list 1000 "k" "M" "G" "T" "P" "E") (list 1024 "Ki" "Mi" "Gi" "Ti" "Pi" "Ei") -}}
{{- $factor := 1 -}}
{{- range rest $units -}}
{{- $factor = mul $factor (first $units) -}}
{{- if eq . (trimPrefix $number $quantity) -}}
{{- $bytes = mul $bytes $factor -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{ $bytes }}
{{- end -}}

{{/* Requests and limits with canonical quantities. resources; where. */}}
{{- define "cmcl.resources" -}}
{{- $canonical := dict -}}
{{- range $kind, $amounts := .resources -}}
{{- $written := dict -}}
{{- range $name, $value := $amounts -}}
{{- $where := printf "%s.%s.%s" $.where $kind $name -}}
{{- $_ := set $written $name (include "cmcl.quantity" (dict "value" $value "where" $where)) -}}
{{- end -}}
{{- if $written -}}
{{- $_ := set $canonical $kind $written -}}
{{- end -}}
{{- end -}}
{{- toYaml $canonical -}}
{{- end -}}

{{/* Volumes in Go's form; otherwise KubeRay owns their list (see above). volumes; where. */}}
{{- define "cmcl.canonicalVolumes" -}}
{{- $volumes := list -}}
{{- range $index, $volume := .volumes -}}
{{- $copy := deepCopy $volume -}}
{{- $where := printf "%s[%d]" $.where $index -}}
{{- with $copy.emptyDir -}}
{{- if hasKey . "sizeLimit" -}}
{{- $_ := set . "sizeLimit" (include "cmcl.quantity" (dict "value" .sizeLimit "where" (printf "%s.emptyDir.sizeLimit" $where))) -}}
{{- end -}}
{{- end -}}
{{- with dig "ephemeral" "volumeClaimTemplate" dict $copy -}}
{{- $resources := dict "resources" (dig "spec" "resources" dict .) "where" (printf "%s.ephemeral.volumeClaimTemplate.spec.resources" $where) -}}
{{- $_ := set . "metadata" (default dict .metadata) -}}
{{- $_ := set . "spec" (mergeOverwrite (default dict .spec) (dict "resources" (include "cmcl.resources" $resources | fromYaml))) -}}
{{- end -}}
{{- $volumes = append $volumes $copy -}}
{{- end -}}
{{- include "cmcl.canonical" $volumes -}}
{{- end -}}

{{/* What users write in Kubernetes' form, without the empty values that Go omits. As JSON with the key value. */}}
{{- define "cmcl.omitEmpty" -}}
{{- $written := .value -}}
{{- if kindIs "map" .value -}}
{{- $written = dict -}}
{{- range $key, $value := .value -}}
{{- $isEmpty := or (and (kindIs "string" $value) (not $value)) (and (kindIs "slice" $value) (not $value)) -}}
{{- if has $key (list "matchLabels" "labels" "annotations" "volumeAttributes" "readOnly") -}}
{{- $isEmpty = not $value -}}
{{- else if eq $key "storageClassName" -}}
{{- /* A pointer in Go: empty means no class, and not the default class. */ -}}
{{- $isEmpty = false -}}
{{- end -}}
{{- if not $isEmpty -}}
{{- $_ := set $written $key (include "cmcl.omitEmpty" (dict "value" $value) | fromJson).value -}}
{{- end -}}
{{- end -}}
{{- else if kindIs "slice" .value -}}
{{- $written = list -}}
{{- range .value -}}
{{- $written = append $written (include "cmcl.omitEmpty" (dict "value" .) | fromJson).value -}}
{{- end -}}
{{- end -}}
{{- dict "value" $written | toJson -}}
{{- end -}}

{{- define "cmcl.canonical" -}}
{{- toYaml (include "cmcl.omitEmpty" (dict "value" .) | fromJson).value -}}
{{- end -}}
