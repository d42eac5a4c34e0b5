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

{{/* How long a node serves on after SIGTERM, while kube-proxy learns that it is not ready; part of the grace period. */}}
{{- define "kv.shutdownDelay" -}}
{{- $grace := include "kv.shutdownGrace" . | float64 -}}
{{- $delay := minf 4 (divf $grace 2) -}}
{{- if hasKey .Values.config "shutdown_delay_s" -}}
{{- $delay = get .Values.config "shutdown_delay_s" -}}
{{- if and (gt (float64 $delay) 0.0) (ge (float64 $delay) $grace) -}}
{{- fail (printf "config.shutdown_delay_s is %v, and a node has %v seconds to stop (terminationGracePeriodSeconds, or config.shutdown_grace_s): no time would be left to hand over the leadership" $delay $grace) -}}
{{- end -}}
{{- end -}}
{{- $delay -}}
{{- end -}}

{{/*
The number of replicas. replicaCount wins, unless `kubectl scale` changed the number since the last upgrade and this one
does not mention it: an upgrade of something else must not remove nodes.
*/}}
{{- define "kv.replicas" -}}
{{- $name := include "kv.fullname" . -}}
{{- $live := lookup "apps/v1" "StatefulSet" .Release.Namespace $name -}}
{{- if kindIs "invalid" .Values.replicaCount -}}
{{- if not $live -}}
{{- fail (printf "replicaCount is null, which keeps the number of nodes that is there, and no StatefulSet %s can be looked up: set replicaCount" $name) -}}
{{- end -}}
{{- int $live.spec.replicas -}}
{{- else -}}
{{- $wanted := int .Values.replicaCount -}}
{{- if $live -}}
{{- $count := int $live.spec.replicas -}}
{{- if and (ne $count $wanted) (eq (include "kv.lastReplicas" .) (toString $wanted)) -}}
{{- fail (printf "replicaCount is %d, as in the last upgrade, but StatefulSet %s was scaled to %d since. Add --set replicaCount=null to keep %d, or run kubectl scale statefulset/%s --replicas=%d first" $wanted $name $count $count $name $wanted) -}}
{{- end -}}
{{- end -}}
{{- $wanted -}}
{{- end -}}
{{- end -}}

{{/* The number of replicas of the last install or upgrade, as its ConfigMap says; empty: there was none. */}}
{{- define "kv.lastReplicas" -}}
{{- $config := lookup "v1" "ConfigMap" .Release.Namespace (printf "%s-cluster" (include "kv.fullname" .)) -}}
{{- if $config -}}
{{- regexFind "replicas = [0-9]+" (get $config.data "kvorum.toml") | trimPrefix "replicas = " -}}
{{- end -}}
{{- end -}}

{{/* The number of nodes that begin a new cluster: while all nodes are stopped (`--replicas=0`), the number before. */}}
{{- define "kv.members" -}}
{{- $replicas := include "kv.replicas" . -}}
{{- ternary (default "1" (include "kv.lastReplicas" .)) $replicas (eq $replicas "0") -}}
{{- end -}}

{{/* Kubernetes refuses to change the claims of a StatefulSet, in words that do not help. */}}
{{- define "kv.checkClaims" -}}
{{- $name := include "kv.fullname" . -}}
{{- $live := lookup "apps/v1" "StatefulSet" .Release.Namespace $name -}}
{{- if $live -}}
{{- $wanted := .Values.persistence -}}
{{- $advice := "Kubernetes cannot change that in place: docs/operations/resize.md says how to do it" -}}
{{- $claims := default list $live.spec.volumeClaimTemplates -}}
{{- if ne $wanted.enabled (gt (len $claims) 0) -}}
{{- fail (printf "persistence.enabled is %v, and StatefulSet %s has %d claims. %s" $wanted.enabled $name (len $claims) $advice) -}}
{{- end -}}
{{- range $claims -}}
{{- $size := .spec.resources.requests.storage -}}
{{- if ne (include "kv.bytes" $size) (include "kv.bytes" $wanted.size) -}}
{{- fail (printf "persistence.size is %v, and the claims of StatefulSet %s have %v. %s" $wanted.size $name $size $advice) -}}
{{- end -}}
{{- $class := default "" .spec.storageClassName -}}
{{- if ne $class $wanted.storageClass -}}
{{- fail (printf "persistence.storageClass is %q, and the claims of StatefulSet %s have %q. %s" $wanted.storageClass $name $class $advice) -}}
{{- end -}}
{{- if ne (toJson .spec.accessModes) (toJson $wanted.accessModes) -}}
{{- fail (printf "persistence.accessModes is %v, and the claims of StatefulSet %s have %v. %s" $wanted.accessModes $name .spec.accessModes $advice) -}}
{{- end -}}
{{- $annotations := default dict .metadata.annotations -}}
{{- if ne (toJson $annotations) (toJson $wanted.annotations) -}}
{{- fail (printf "persistence.annotations is %v, and the claims of StatefulSet %s have %v. %s" $wanted.annotations $name $annotations $advice) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* A quantity of Kubernetes as a plain number: 8Gi and 8192Mi are equal. */}}
{{- define "kv.bytes" -}}
{{- $text := toString . -}}
{{- $number := regexFind "^[0-9.]+" $text -}}
{{- $units := dict "" 1 "m" 0.001 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 "Pi" 1125899906842624 -}}
{{- mulf (float64 $number) (get $units (trimPrefix $number $text)) -}}
{{- end -}}

{{/*
What a node asks for. Its memory request is its limit unless you set one: under memory pressure the kubelet evicts those
first that use more than they asked for. Without a volume, it asks for the size of one on the disk of its host.
*/}}
{{- define "kv.resources" -}}
{{- $resources := deepCopy .Values.resources -}}
{{- $requests := default dict $resources.requests -}}
{{- $limits := default dict $resources.limits -}}
{{- if and $limits.memory (not $requests.memory) -}}
{{- $_ := set $requests "memory" $limits.memory -}}
{{- end -}}
{{- if and (not .Values.persistence.enabled) (not (get $requests "ephemeral-storage")) -}}
{{- $_ := set $requests "ephemeral-storage" .Values.persistence.size -}}
{{- end -}}
{{- $_ := set $resources "requests" $requests -}}
{{- toYaml $resources -}}
{{- end -}}

{{/* Clients outside of the Kubernetes cluster cannot follow a redirect to a pod, nor pass the default NetworkPolicy. */}}
{{- define "kv.isExposed" -}}
{{- if ne .Values.service.type "ClusterIP" -}}
{{- if and .Values.networkPolicy.enabled (eq (toJson .Values.networkPolicy.clients) "[{\"podSelector\":{}}]") -}}
{{- fail (printf "service.type is %s, but networkPolicy.clients admits only the pods of this namespace. List your clients there, e.g. as ipBlock: there is no authentication" .Values.service.type) -}}
{{- end -}}
true
{{- end -}}
{{- end -}}
