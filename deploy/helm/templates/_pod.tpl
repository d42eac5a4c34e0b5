{{/* The node's configuration but for the number of replicas, which is in a mounted file so that scaling rolls nothing. */}}
{{- define "kv.env" -}}
- name: KVORUM_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: KVORUM_CONFIG
  value: /etc/kvorum/kvorum.toml
- name: KVORUM_DATA_DIR
  value: /data/kvorum
- name: KVORUM_LISTEN_CLIENT
  value: "{{ .Values.listenHost }}:8001"
- name: KVORUM_LISTEN_PEER
  value: "{{ .Values.listenHost }}:9001"
- name: KVORUM_LISTEN_METRICS
  value: "{{ .Values.listenHost }}:8002"
- name: KVORUM_DISCOVERY_DNS
  value: {{ printf "%s.%s.svc.%s" (include "kv.headless" .) .Release.Namespace .Values.clusterDomain }}
- name: KVORUM_INSECURE
  value: "true"
- name: KVORUM_SHUTDOWN_GRACE_S
  value: {{ include "kv.shutdownGrace" . | quote }}
- name: KVORUM_SHUTDOWN_DELAY_S
  value: {{ include "kv.shutdownDelay" . | quote }}
- name: KVORUM_HOSTS
  value: {{ include "kv.hosts" . | quote }}
{{- $config := .Values.config }}
{{- if and (include "kv.isExposed" .) (not (hasKey $config "forward")) }}
{{- $config = merge (dict "forward" true) $config }}
{{- end }}
{{- /*
Every option is named, given or not; an empty variable is an unset one. Helm merges this list by name with what is there:
if an upgrade fails and is rolled back, it leaves alone what neither the manifest before nor the one after names.
*/}}
{{- range $option := without (.Files.Get "options.txt" | trim | splitList "\n") "shutdown_grace_s" "shutdown_delay_s" "hosts" }}
{{- $value := get $config $option }}
- name: KVORUM_{{ upper $option }}
  {{- /* Helm reads numbers as floats: 268435456 must not become 2.68435456e+08. */}}
  value: {{ if and (kindIs "float64" $value) (eq $value (floor $value)) }}{{ int64 $value | quote }}{{ else }}{{ $value | toString | quote }}{{ end }}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The short names of the Services; nodes know those that end in NAMESPACE.svc themselves. */}}
{{- define "kv.hosts" -}}
{{- $hosts := list -}}
{{- range list (include "kv.fullname" .) (printf "%s-leader" (include "kv.fullname" .)) (include "kv.headless" .) -}}
{{- $hosts = concat $hosts (list . (printf "%s.%s" . $.Release.Namespace)) -}}
{{- end -}}
{{- with .Values.config.hosts -}}
{{- $hosts = append $hosts . -}}
{{- end -}}
{{- join "," $hosts -}}
{{- end -}}

{{- define "kv.affinity" -}}
{{- if .Values.affinity -}}
affinity:
  {{- toYaml .Values.affinity | nindent 2 }}
{{- else if eq .Values.podAntiAffinity "hard" -}}
affinity:
  podAntiAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      - topologyKey: kubernetes.io/hostname
        labelSelector:
          matchLabels:
            {{- include "kv.selectorLabels" . | nindent 12 }}
{{- else if eq .Values.podAntiAffinity "soft" -}}
affinity:
  podAntiAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 100
        podAffinityTerm:
          topologyKey: kubernetes.io/hostname
          labelSelector:
            matchLabels:
              {{- include "kv.selectorLabels" . | nindent 14 }}
{{- end -}}
{{- end -}}

{{- define "kv.spread" -}}
{{- if .Values.topologySpreadConstraints -}}
topologySpreadConstraints:
  {{- toYaml .Values.topologySpreadConstraints | nindent 2 }}
{{- else if ne .Values.zoneSpread "none" -}}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: topology.kubernetes.io/zone
    whenUnsatisfiable: {{ ternary "DoNotSchedule" "ScheduleAnyway" (eq .Values.zoneSpread "hard") }}
    labelSelector:
      matchLabels:
        {{- include "kv.selectorLabels" . | nindent 8 }}
{{- end -}}
{{- end -}}
