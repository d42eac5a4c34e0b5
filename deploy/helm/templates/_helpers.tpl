{{- define "kv.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* The objects' name; at most 52 characters, so that "-headless" and the pods' revision hash fit into 63. */}}
{{- define "kv.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "kv.headless" -}}
{{- printf "%s-headless" (include "kv.fullname" .) -}}
{{- end -}}

{{/* Never to change: they are in the StatefulSet's selector and in its claims. */}}
{{- define "kv.selectorLabels" -}}
app.kubernetes.io/name: {{ include "kv.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* Of the pod that `helm test` runs; the nodes' selectors must not select it. */}}
{{- define "kv.testLabels" -}}
app.kubernetes.io/name: {{ printf "%s-test" (include "kv.name" . | trunc 58) }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "kv.labels" -}}
{{ include "kv.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/component: database
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "kv.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "kv.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "kv.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{/* The process must end before the kubelet ends it: five seconds for closing. */}}
{{- define "kv.shutdownGrace" -}}
{{- $most := sub (int .Values.terminationGracePeriodSeconds) 5 -}}
{{- $wanted := get .Values.config "shutdown_grace_s" -}}
{{- if and (hasKey .Values.config "shutdown_grace_s") (gt (float64 $wanted) (float64 $most)) -}}
{{- fail (printf "config.shutdown_grace_s is %v, and the kubelet ends a pod after terminationGracePeriodSeconds (%v): at most %v, to leave time for closing" $wanted .Values.terminationGracePeriodSeconds $most) -}}
{{- end -}}
{{- ternary $wanted $most (hasKey .Values.config "shutdown_grace_s") -}}
{{- end -}}
