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
app.kubernetes.io/name: {{ .Chart.Name | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "llama-supervisor.labels" -}}
{{ include "llama-supervisor.selectorLabels" . }}
{{ include "llama-supervisor.commonLabels" . }}
{{- end }}

{{/* Labels of every object, none of which a selector knows. */}}
{{- define "llama-supervisor.commonLabels" -}}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | quote }}
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
{{- define "llama-supervisor.writtenFiles" -}}
{{- $files := dict }}
{{- range $path, $content := .Files.Glob "profiles/*.yaml" }}
{{- $_ := set $files (base $path) (toString $content) }}
{{- end }}
{{- if not $files }}
{{- fail "\n\nThis copy of the chart holds no profiles/*.yaml: it was packaged without them. Take the chart from the repository, or from a package that was made there\n" }}
{{- end }}
{{- range $name, $content := .Values.configuration }}
{{- $_ := set $files $name (kindIs "string" $content | ternary $content (toYaml $content)) }}
{{- end }}
{{- toYaml $files }}
{{- end }}

{{/* The same, with what the chart knows put into supervisor.yaml beneath what is written there. */}}
{{- define "llama-supervisor.files" -}}
{{- $files := include "llama-supervisor.writtenFiles" . | fromYaml }}
{{- $settings := get $files "supervisor.yaml" | fromYaml }}
{{- if not (hasKey $settings "Error") }}
{{- $own := include "llama-supervisor.ownSettings" . | fromYaml }}
{{- $merged := mergeOverwrite (deepCopy $own) $settings }}
{{- if kindIs "map" $merged.server }}
{{- $written := get $merged.server "allowed_hosts" }}
{{- if kindIs "slice" $written }}
{{- $_ := set $merged.server "allowed_hosts" (concat $own.server.allowed_hosts $written | uniq) }}
{{- end }}
{{- end }}
{{- $_ := set $files "supervisor.yaml" (toYaml $merged) }}
{{- end }}
{{- toYaml $files }}
{{- end }}

{{/*
What the chart knows. A GPU that was asked for must be seen: without this, a Pod that sees none runs
in host memory. The names under which clients reach the Service are the only ones that a web page's
request may give (DNS rebinding).
*/}}
{{- define "llama-supervisor.ownSettings" -}}
{{- $name := include "llama-supervisor.fullname" . }}
{{- $inNamespace := printf "%s.%s" $name .Release.Namespace }}
{{- $hosts := list $name $inNamespace (printf "%s.svc" $inNamespace) (printf "%s.svc.%s" $inNamespace .Values.service.clusterDomain) }}
{{- $devices := dict }}
{{- range $number := until (int .Values.gpu.count) }}
{{- $_ := set $devices (printf "gpu%d" $number) (dict "required" true) }}
{{- end }}
{{- $settings := dict "devices" $devices "server" (dict "allowed_hosts" (concat $hosts .Values.service.hosts | uniq)) }}
{{- if .Values.jobs.queueUrlSecret.name }}
{{- $_ := set $settings "jobs" (dict "queue_url" "${JOBS_QUEUE_URL}") }}
{{- end }}
{{- toYaml $settings }}
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
What is not a mapping is left to the product, which refuses it with a better message.
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

{{/* A size in bytes: a number, or a text with a unit (`8GiB`, `500 MB`). */}}
{{- define "llama-supervisor.bytes" -}}
{{- $units := dict "B" 1 "KiB" 1024 "MiB" 1048576 "GiB" 1073741824 "TiB" 1099511627776 "KB" 1000 "MB" 1000000 "GB" 1000000000 "TB" 1000000000000 }}
{{- $unit := toString .value | regexFind "[A-Za-z]+$" }}
{{- if has (kindOf .value) (list "float64" "int64" "int") }}
{{- int64 .value }}
{{- else if and (hasKey $units $unit) (regexMatch "^[0-9]+([.][0-9]+)?[ ]*[A-Za-z]+$" (toString .value)) }}
{{- mulf (toString .value | regexFind "^[0-9.]+") (get $units $unit) | int64 }}
{{- else }}
{{- fail (printf "\n\n%s must be a size such as 8GiB or a number of bytes: the data volume's size is computed from it\n" .name) }}
{{- end }}
{{- end }}

{{/* A field of supervisor.yaml's section `switch`, or the product's default of it. */}}
{{- define "llama-supervisor.promptCacheBytes" -}}
{{- $switch := get (index . "supervisor.yaml") "switch" | default dict }}
{{- $value := kindIs "map" $switch | ternary (dig "prompt_cache_max_bytes" 8589934592 $switch) 8589934592 }}
{{- include "llama-supervisor.bytes" (dict "name" "configuration.supervisor.yaml: prompt_cache_max_bytes" "value" $value) }}
{{- end }}

{{/* What jobs and their files may take of the data volume: nothing where their queue is elsewhere. */}}
{{- define "llama-supervisor.jobBytes" -}}
{{- $jobs := get (index . "supervisor.yaml") "jobs" | default dict }}
{{- if not (kindIs "map" $jobs) }}
{{- $jobs = dict }}
{{- end }}
{{- if get $jobs "queue_url" }}
{{- 0 }}
{{- else }}
{{- include "llama-supervisor.bytes" (dict "name" "configuration.supervisor.yaml: jobs.max_bytes" "value" (dig "max_bytes" 17179869184 $jobs)) }}
{{- end }}
{{- end }}

{{/* What the settings let grow in the data volume. */}}
{{- define "llama-supervisor.grownBytes" -}}
{{- $configuration := include "llama-supervisor.configuration" . | fromYaml }}
{{- add (include "llama-supervisor.promptCacheBytes" $configuration | int64) (include "llama-supervisor.jobBytes" $configuration | int64) }}
{{- end }}

{{/* The longest value of a duration in any profile or override. `default`: of a profile without it. */}}
{{- define "llama-supervisor.longestSeconds" -}}
{{- $field := .field }}
{{- $longest := 0.0 }}
{{- range $file, $profile := omit .configuration "supervisor.yaml" "models.yaml" }}
{{- $default := hasKey $profile "extends" | ternary 0.0 $.default }}
{{- $seconds := include "llama-supervisor.seconds" (dict "file" $file "section" $profile "field" $field "default" $default) }}
{{- $longest = maxf $longest $seconds }}
{{- end }}
{{- $models := get (index .configuration "models.yaml") "models" }}
{{- range $model := kindIs "map" $models | ternary $models dict }}
{{- if kindIs "map" $model }}
{{- $seconds := include "llama-supervisor.seconds" (dict "file" "models.yaml" "section" (get $model "overrides") "field" $field "default" 0.0) }}
{{- $longest = maxf $longest $seconds }}
{{- end }}
{{- end }}
{{- $longest }}
{{- end }}

{{/*
Seconds in which prompts are saved when the controller ends: 0 unless keep_prompt_cache_at_exit, else
10 and what the largest cache takes at 50 MB/s, which is what the product gives them.
*/}}
{{- define "llama-supervisor.savingSeconds" -}}
{{- $switch := get (index . "supervisor.yaml") "switch" | default dict }}
{{- if and (kindIs "map" $switch) (get $switch "keep_prompt_cache_at_exit" | toString | eq "true") }}
{{- addf 10 (divf (include "llama-supervisor.promptCacheBytes" .) 50000000) }}
{{- else }}
{{- 0 }}
{{- end }}
{{- end }}

{{/*
Seconds until the kubelet kills the Pod. Too few, and streams are cut and the servers are killed
before their memory is given back. The defaults here and above are the product's own.
*/}}
{{- define "llama-supervisor.terminationGracePeriodSeconds" -}}
{{- $configuration := include "llama-supervisor.configuration" . | fromYaml }}
{{- $switch := get (index $configuration "supervisor.yaml") "switch" }}
{{- $drain := include "llama-supervisor.seconds" (dict "file" "supervisor.yaml" "section" $switch "field" "shutdown_drain_timeout_s" "default" 30.0) }}
{{- $stop := include "llama-supervisor.longestSeconds" (dict "configuration" $configuration "field" "stop_grace_s" "default" 5.0) }}
{{- $saving := include "llama-supervisor.savingSeconds" $configuration }}
{{- $ending := addf $drain $stop $saving | ceil | int }}
{{- add .Values.termination.preStopSeconds $ending .Values.termination.marginSeconds }}
{{- end }}

{{/* The startup probe; a controller that waits for the data folder does not listen yet. */}}
{{- define "llama-supervisor.startupProbe" -}}
{{- $probe := .Values.probes.startup }}
{{- $wait := include "llama-supervisor.dataClaim" . | empty | ternary "0" (include "llama-supervisor.terminationGracePeriodSeconds" .) }}
{{- $failures := divf $wait $probe.periodSeconds | ceil | int | add $probe.failureThreshold }}
{{- mergeOverwrite (dict) $probe (dict "failureThreshold" $failures) | toYaml }}
{{- end }}

{{/*
Seconds without progress after which a roll-out counts as failed: the old Pod may take all of its
time to end, the image ten minutes to come, and the default model all of its time to load.
*/}}
{{- define "llama-supervisor.progressDeadlineSeconds" -}}
{{- $configuration := include "llama-supervisor.configuration" . | fromYaml }}
{{- $startup := mul .Values.probes.startup.periodSeconds .Values.probes.startup.failureThreshold }}
{{- $loading := include "llama-supervisor.longestSeconds" (dict "configuration" $configuration "field" "start_timeout_s" "default" 120.0) | ceil | int }}
{{- add (include "llama-supervisor.terminationGracePeriodSeconds" .) $startup $loading 600 }}
{{- end }}

{{/* A name, which YAML reads as a number where it has digits only: 1234567, and not 1.234567e+06. */}}
{{- define "llama-supervisor.asName" -}}
{{- if kindIs "float64" . }}{{ int64 . }}{{ else }}{{ . }}{{ end }}
{{- end }}

{{/* The claim that data stands in: one that is there, or our own. Empty: an emptyDir. */}}
{{- define "llama-supervisor.dataClaim" -}}
{{- if .Values.data.existingClaim }}
{{- include "llama-supervisor.asName" .Values.data.existingClaim }}
{{- else if .Values.data.persistence.enabled }}
{{- include "llama-supervisor.fullname" . }}-data
{{- end }}
{{- end }}

{{/* The largest that an emptyDir for data may grow: the given size, or what may grow and 2 GiB. */}}
{{- define "llama-supervisor.dataSizeLimit" -}}
{{- $given := .Values.data.sizeLimit }}
{{- if not $given }}
{{- $given = printf "%dGi" (addf (divf (include "llama-supervisor.grownBytes" .) 1073741824 | ceil) 2 | int64) }}
{{- end }}
{{- include "llama-supervisor.holdingData" (dict "name" "data.sizeLimit" "size" $given "otherwise" "the kubelet evicts a Pod whose emptyDir is full" "root" .) }}
{{- end }}

{{/* A size of the data volume (`20Gi`), refused where it does not hold what the settings let grow. */}}
{{- define "llama-supervisor.holdingData" -}}
{{- $grown := include "llama-supervisor.grownBytes" .root }}
{{- $size := include "llama-supervisor.bytes" (dict "name" .name "value" (printf "%sB" .size)) }}
{{- if le (int64 $size) (int64 $grown) }}
{{- fail (printf "\n\n%s: %s does not hold the prompt cache and jobs (switch.prompt_cache_max_bytes and jobs.max_bytes: %s bytes together), and %s: raise it, or lower them\n" .name .size $grown .otherwise) }}
{{- end }}
{{- .size }}
{{- end }}

{{/* What every Pod of this chart runs as. */}}
{{- define "llama-supervisor.podSecurityContext" -}}
{{- $ids := .Values.securityContext -}}
runAsNonRoot: true
runAsUser: {{ int64 $ids.runAsUser }}
runAsGroup: {{ int64 $ids.runAsGroup }}
fsGroup: {{ int64 $ids.fsGroup }}
fsGroupChangePolicy: OnRootMismatch  # not through a whole volume of models at each start
{{- with $ids.supplementalGroups }}
supplementalGroups:
  {{- toYaml . | nindent 2 }}
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "llama-supervisor.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* Where the Pods of this chart may run, and with which image. */}}
{{- define "llama-supervisor.placement" -}}
{{- range $field := list "priorityClassName" "imagePullSecrets" "nodeSelector" "tolerations" "affinity" }}
{{- with index $.Values $field }}
{{ dict $field . | toYaml }}
{{- end }}
{{- end }}
{{- end }}

{{/* The environment of the controller, and of its check. */}}
{{- define "llama-supervisor.env" -}}
{{- with .Values.jobs.queueUrlSecret }}
{{- if .name }}
- name: JOBS_QUEUE_URL
  valueFrom:
    secretKeyRef:
      name: {{ include "llama-supervisor.asName" .name | quote }}
      key: {{ quote .key }}
{{- end }}
{{- end }}
{{- with .Values.env }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* What the schema cannot check. The texts name the value, what is wrong, and what to do. */}}
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
{{- if and .Values.data.existingClaim .Values.data.persistence.enabled }}
{{- fail "\n\ndata: set existingClaim or persistence.enabled, not both\n" }}
{{- end }}
{{- range $key := list "labels" "podLabels" }}
{{- range $label, $_ := index $.Values $key }}
{{- if or (hasPrefix "app.kubernetes.io/" $label) (hasPrefix "helm.sh/" $label) }}
{{- fail (printf "\n\n%s: %s is set by the chart; use another prefix\n" $key $label) }}
{{- end }}
{{- end }}
{{- end }}
{{- if hasKey (.Values.podAnnotations | default dict) "checksum/config" }}
{{- fail "\n\npodAnnotations: checksum/config is set by the chart; leave it out\n" }}
{{- end }}
{{- include "llama-supervisor.validateEnv" . }}
{{- include "llama-supervisor.validateSettings" . }}
{{- end }}

{{/* Kubernetes takes the last of two variables with one name, and what an upgrade makes of them varies. */}}
{{- define "llama-supervisor.validateEnv" -}}
{{- $names := list }}
{{- range .Values.env }}
{{- if has .name (list "LLAMA_SERVER_BIN" "MODEL_CONFIG_PATH") }}
{{- fail (printf "\n\nenv: %s is set by the image and the chart; use configuration instead\n" .name) }}
{{- end }}
{{- if and (eq .name "JOBS_QUEUE_URL") $.Values.jobs.queueUrlSecret.name }}
{{- fail "\n\nenv: JOBS_QUEUE_URL is set by the chart, out of jobs.queueUrlSecret; leave one of the two out\n" }}
{{- end }}
{{- if has .name $names }}
{{- fail (printf "\n\nenv: %s is given twice; keep one\n" .name) }}
{{- end }}
{{- $names = append $names .name }}
{{- end }}
{{- end }}
