{{/* What the operator reads: operator/src/configuration.rs. */}}
{{- define "podlane.configuration" -}}
{{- $agents := .Values.agents }}
{{- with .Values.firstPolicy -}}
firstPolicy:
  {{- toYaml . | nindent 2 }}
{{ end -}}
agents:
  name: {{ include "podlane.agent" . }}
  owner: {{ include "podlane.operator" . }}
  serviceAccount: {{ include "podlane.agent" . }}
  image: {{ include "podlane.image" (dict "root" . "image" $agents.image) | quote }}
  imagePullPolicy: {{ $agents.image.pullPolicy }}
  imagePullSecrets: {{ .Values.imagePullSecrets | default list | toJson }}
  {{- if .Values.k8sServiceHost }}
  apiServer: {host: {{ .Values.k8sServiceHost | quote }}, port: {{ .Values.k8sServicePort }}}
  {{- end }}
  {{- if .Values.cni.install }}
  cni: {confDir: {{ .Values.cni.confDir | quote }}, confName: {{ .Values.cni.confName | quote }}}
  {{- end }}
  {{- if $agents.loadModules }}
  loadModules: true
  {{- end }}
  patienceSeconds: {{ $agents.patienceSeconds | default 120 }}
  logFormat: {{ $agents.logFormat }}
  logLevel: {{ $agents.logLevel | quote }}
  metrics: {{ $agents.metrics | quote }}
  priorityClassName: {{ $agents.priorityClassName | quote }}
  labels:
    {{- include "podlane.labels" (dict "root" . "component" "agent") | nindent 4 }}
  podLabels: {{ $agents.podLabels | default dict | toJson }}
  podAnnotations: {{ $agents.podAnnotations | default dict | toJson }}
  resources: {{ $agents.resources | default dict | toJson }}
  nodeSelector: {{ $agents.nodeSelector | default dict | toJson }}
  tolerations: {{ $agents.tolerations | default list | toJson }}
{{- end }}
