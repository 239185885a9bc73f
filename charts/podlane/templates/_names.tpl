{{/* Names are fixed, whatever the release is called: a cluster has one Podlane, and admission policies are the cluster's. */}}
{{- define "podlane.operator" -}}podlane-operator{{- end }}
{{- define "podlane.agent" -}}podlane-agent{{- end }}

{{/* Labels of everything in the release. Takes a dict of root and component. */}}
{{- define "podlane.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{ include "podlane.selector" . }}
{{- end }}

{{- define "podlane.selector" -}}
app.kubernetes.io/name: podlane
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* What makes an object be there while `helm uninstall` runs, before the Job, and go once that has succeeded. */}}
{{- define "podlane.uninstallRights" -}}
helm.sh/hook: pre-delete
helm.sh/hook-weight: "-1"
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end }}

{{/* An image's reference. Takes a dict of root and image. */}}
{{- define "podlane.image" -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ .image.tag | default .root.Chart.AppVersion }}
{{- end -}}
{{- end }}
