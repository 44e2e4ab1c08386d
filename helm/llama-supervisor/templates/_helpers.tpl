{{/* Name of every object: at most 63 characters, because a Service's name is a DNS label. */}}
{{- define "llama-supervisor.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride }}
{{- else if contains .Chart.Name .Release.Name }}
{{- .Release.Name | replace "." "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name .Chart.Name | replace "." "-" | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/*
What selects the Pod. A Deployment's selector can never change, so nothing stands here that a
value or a version could change.
*/}}
{{- define "llama-supervisor.selectorLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "llama-supervisor.labels" -}}
{{ include "llama-supervisor.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.labels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "llama-supervisor.podLabels" -}}
{{ include "llama-supervisor.selectorLabels" . }}
{{- with mergeOverwrite (dict) .Values.labels .Values.podLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "llama-supervisor.image" -}}
{{- if .Values.image.digest }}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) }}
{{- end }}
{{- end }}

{{/* The configuration folder as a mapping from file name to text: what is shipped, then values. */}}
{{- define "llama-supervisor.files" -}}
{{- $files := dict }}
{{- range $path, $content := .Files.Glob "profiles/*.yaml" }}
{{- $_ := set $files (base $path) (toString $content) }}
{{- end }}
{{- range $name, $content := .Values.configuration }}
{{- $_ := set $files $name (kindIs "string" $content | ternary $content (toYaml $content)) }}
{{- end }}
{{- toYaml $files }}
{{- end }}

{{/* The same as a mapping from file name to the file's fields. */}}
{{- define "llama-supervisor.configuration" -}}
{{- $parsed := dict }}
{{- range $name, $text := include "llama-supervisor.files" . | fromYaml }}
{{- $fields := fromYaml $text }}
{{- if hasKey $fields "Error" }}
{{- fail (printf "\n\nconfiguration.%s: must be a YAML mapping (`name: value`): %s\n" $name $fields.Error) }}
{{- end }}
{{- $_ := set $parsed $name $fields }}
{{- end }}
{{- toYaml $parsed }}
{{- end }}

{{/*
A field of a section in seconds, or the default: a number, or a text with a unit (`90s`, `2m`).
What is no mapping is left to the product, which refuses it with a better message.
*/}}
{{- define "llama-supervisor.seconds" -}}
{{- $value := .default }}
{{- if kindIs "map" .section }}
{{- $value = dig .field .default .section }}
{{- end }}
{{- $units := dict "ms" 0.001 "s" 1.0 "m" 60.0 "min" 60.0 "h" 3600.0 "d" 86400.0 }}
{{- $unit := toString $value | regexFind "[A-Za-z]+$" }}
{{- if has (kindOf $value) (list "float64" "int64") }}
{{- $value }}
{{- else if and (hasKey $units $unit) (regexMatch "^[0-9]+([.][0-9]+)?[ ]*[A-Za-z]+$" (toString $value)) }}
{{- mulf (toString $value | regexFind "^[0-9.]+") (get $units $unit) }}
{{- else }}
{{- fail (printf "\n\nconfiguration.%s: %s must be a duration such as 30s or a number of seconds: the Pod's time to end is computed from it\n" .file .field) }}
{{- end }}
{{- end }}

{{/* The longest time between SIGTERM and SIGKILL of any model's server. */}}
{{- define "llama-supervisor.stopGraceSeconds" -}}
{{- $longest := 0.0 }}
{{- range $file, $profile := omit . "supervisor.yaml" "models.yaml" }}
{{- $default := hasKey $profile "extends" | ternary 0.0 5.0 }}
{{- $seconds := include "llama-supervisor.seconds" (dict "file" $file "section" $profile "field" "stop_grace_s" "default" $default) }}
{{- $longest = maxf $longest $seconds }}
{{- end }}
{{- $models := get (index . "models.yaml") "models" }}
{{- range $model := kindIs "map" $models | ternary $models dict }}
{{- if kindIs "map" $model }}
{{- $seconds := include "llama-supervisor.seconds" (dict "file" "models.yaml" "section" (get $model "overrides") "field" "stop_grace_s" "default" 0.0) }}
{{- $longest = maxf $longest $seconds }}
{{- end }}
{{- end }}
{{- $longest }}
{{- end }}

{{/*
Seconds until the kubelet kills the Pod. Too few, and streams are cut and the servers are killed
before their memory is given back. The defaults here and above are the product's own.
*/}}
{{- define "llama-supervisor.terminationGracePeriodSeconds" -}}
{{- $configuration := include "llama-supervisor.configuration" . | fromYaml }}
{{- $switch := get (index $configuration "supervisor.yaml") "switch" }}
{{- $drain := include "llama-supervisor.seconds" (dict "file" "supervisor.yaml" "section" $switch "field" "shutdown_drain_timeout_s" "default" 30.0) }}
{{- $stop := include "llama-supervisor.stopGraceSeconds" $configuration }}
{{- $ending := addf $drain $stop | ceil | int }}
{{- add .Values.termination.preStopSeconds $ending .Values.termination.marginSeconds }}
{{- end }}

{{/* What the schema cannot tell. The texts name the value, what is wrong, and what to do. */}}
{{- define "llama-supervisor.validate" -}}
{{- $name := include "llama-supervisor.fullname" . }}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $name) }}
{{- fail (printf "\n\nfullnameOverride: set it, because %q cannot name a Service: it must begin with a letter and hold only a-z, 0-9 and -\n" $name) }}
{{- end }}
{{- if and .Values.models.existingClaim .Values.models.hostPath }}
{{- fail "\n\nmodels: set existingClaim or hostPath, not both\n" }}
{{- end }}
{{- if not (or .Values.models.existingClaim .Values.models.hostPath) }}
{{- fail "\n\nmodels.existingClaim: name the claim that holds the GGUF files (or set models.hostPath to a folder of the node)\n" }}
{{- end }}
{{- range $key := list "labels" "podLabels" }}
{{- range $label, $_ := index $.Values $key }}
{{- if or (hasPrefix "app.kubernetes.io/" $label) (hasPrefix "helm.sh/" $label) }}
{{- fail (printf "\n\n%s: %s is set by the chart; use another prefix\n" $key $label) }}
{{- end }}
{{- end }}
{{- end }}
{{- range .Values.env }}
{{- if has .name (list "LLAMA_SERVER_BIN" "MODEL_CONFIG_PATH") }}
{{- fail (printf "\n\nenv: %s is set by the image and the chart; use configuration instead\n" .name) }}
{{- end }}
{{- end }}
{{- end }}
