{{/*
What supervisor.yaml gives twice as text, at any depth. The product's check never sees it: fromYaml
keeps the last one. Other files given as text are mounted as they are.

A scope is a mapping whose names stand in one column. `open` says what may stand below its last name:
`yes`, or `items` once there was one, or nothing, as behind a value on the name's own line. So texts
and what is in braces go over several lines unread.
*/}}
{{- define "llama-supervisor.validateSettings" -}}
{{- $text := get (.Values.configuration | default dict) "supervisor.yaml" }}
{{- $scopes := list (dict "column" 0 "path" "" "below" "" "open" "yes") }}
{{- $seen := dict }}
{{- range $number, $line := kindIs "string" $text | ternary (toString $text | splitList "\n") list }}
{{- $lead := regexFind "^ *(-( +|\\s*$))?" $line }}
{{- $rest := trimPrefix $lead $line }}
{{- $name := regexFind "^(\"[^\"]*\"|'[^']*'|[^-\\s#&*!|>{}\\[\\],:\"'<?][^:#]*)\\s*:(\\s|$)" $rest }}
{{- $isItem := contains "-" $lead }}
{{- $column := regexFind "^ *" $line | len }}
{{- range $scope := ternary (reverse $scopes) list (or $isItem (ne $name "")) }}
{{- if gt (int $scope.column) $column }}
{{- $scopes = initial $scopes }}
{{- end }}
{{- end }}
{{- $scope := last $scopes }}
{{- if and $isItem $scope.open }}
{{- $item := add1 ($scope.item | default 0) }}
{{- $_ := mergeOverwrite $scope (dict "item" $item "open" (empty $rest | ternary "yes" "items") "below" (printf "%s%d." $scope.name (sub $item 1))) }}
{{- $scopes = empty $name | ternary $scopes (append $scopes (dict "column" (len $lead) "path" $scope.below)) }}
{{- else if $isItem }}
{{- $name = "" }}
{{- else if and $name (gt $column (int $scope.column)) }}
{{- $scopes = eq $scope.open "yes" | ternary (append $scopes (dict "column" $column "path" $scope.below)) $scopes }}
{{- $name = eq $scope.open "yes" | ternary $name "" }}
{{- end }}
{{- if $name }}
{{- $scope = last $scopes }}
{{- $path := $name | trim | trimSuffix ":" | trim | trimAll "\"'" | printf "%s%s" $scope.path }}
{{- if hasKey $seen $path }}
{{- fail (printf "\n\nconfiguration.supervisor.yaml:%d: %s is given twice, first on line %d; keep one\n" (add1 $number) $path (get $seen $path | int)) }}
{{- end }}
{{- $_ := set $seen $path (add1 $number) }}
{{- $isOpen := trimPrefix $name $rest | regexMatch "^\\s*([&!]\\S*\\s*)*(#.*)?$" }}
{{- $_ := mergeOverwrite $scope (dict "name" (printf "%s." $path) "below" (printf "%s." $path) "item" 0 "open" (ternary "yes" "" $isOpen)) }}
{{- end }}
{{- end }}
{{- end }}
