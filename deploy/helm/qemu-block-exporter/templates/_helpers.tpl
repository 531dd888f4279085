{{/* One release of a name in a namespace: the release's name is in every name but the usual one. */}}
{{- define "qbe.name" -}}
{{- if contains "qemu-block-exporter" .Release.Name -}}
{{ .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-qemu-block-exporter" .Release.Name | trunc 63 | trimSuffix "-" }}
{{- end -}}
{{- end -}}

{{- define "qbe.selector" -}}
app.kubernetes.io/name: qemu-block-exporter
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "qbe.labels" -}}
{{ include "qbe.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "qbe.metadata" -}}
name: {{ include "qbe.name" . }}
namespace: {{ .Release.Namespace }}
labels:
  {{- include "qbe.labels" . | nindent 2 }}
{{- end -}}
