{{- define "funnelcast.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "funnelcast.fullname" -}}
{{- $name := include "funnelcast.name" . }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "funnelcast.selectorLabels" -}}
app.kubernetes.io/name: {{ include "funnelcast.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "funnelcast.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "funnelcast.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: funnelcast
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "funnelcast.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "funnelcast.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "funnelcast.image" -}}
{{- $tag := default .Chart.AppVersion .Values.image.tag }}
{{- if and .Values.gpu.enabled (not .Values.image.tag) }}{{ $tag = printf "%s-gpu" $tag }}{{ end }}
{{- printf "%s:%s" .Values.image.repository $tag }}
{{- with .Values.image.digest }}{{ printf "@%s" . }}{{ end }}
{{- end }}

{{- /* The consumer group and the prefix of the table's topic and of transactional ids. */}}
{{- define "funnelcast.appId" -}}
{{- default (include "funnelcast.fullname" .) .Values.kafka.appId }}
{{- end }}

{{- define "funnelcast.user" -}}
{{- include "funnelcast.fullname" . }}
{{- end }}

{{- define "funnelcast.strimziUser" -}}
{{- if and .Values.strimzi.enabled .Values.strimzi.user.enabled }}{{ .Values.strimzi.user.authentication }}{{ end }}
{{- end }}

{{- define "funnelcast.securityProtocol" -}}
{{- if .Values.kafka.sasl.enabled }}SASL_{{ end }}
{{- ternary "SSL" "PLAINTEXT" .Values.kafka.tls.enabled }}
{{- end }}

{{- define "funnelcast.saslSecret" -}}
{{- if and (eq (include "funnelcast.strimziUser" .) "scram-sha-512") (not .Values.kafka.sasl.secret) }}
{{- include "funnelcast.user" . }}
{{- else }}
{{- required "kafka.sasl.enabled needs kafka.sasl.secret, the Secret that holds the password" .Values.kafka.sasl.secret }}
{{- end }}
{{- end }}

{{- define "funnelcast.saslUsername" -}}
{{- if and (eq (include "funnelcast.strimziUser" .) "scram-sha-512") (not .Values.kafka.sasl.username) }}
{{- include "funnelcast.user" . }}
{{- else }}
{{- required "kafka.sasl.enabled needs kafka.sasl.username" .Values.kafka.sasl.username }}
{{- end }}
{{- end }}

{{- define "funnelcast.caSecret" -}}
{{- if .Values.kafka.tls.caSecret }}{{ .Values.kafka.tls.caSecret }}
{{- else if .Values.strimzi.enabled }}{{ printf "%s-cluster-ca-cert" .Values.strimzi.cluster }}
{{- end }}
{{- end }}

{{- define "funnelcast.clientSecret" -}}
{{- if .Values.kafka.tls.clientSecret }}{{ .Values.kafka.tls.clientSecret }}
{{- else if eq (include "funnelcast.strimziUser" .) "tls" }}{{ include "funnelcast.user" . }}
{{- end }}
{{- end }}

{{- /* Whether anything is to be mounted as a file that the settings read secrets from. */}}
{{- define "funnelcast.hasSecrets" -}}
{{- if or .Values.kafka.sasl.enabled .Values.holdoutSalt.secret }}true{{ end }}
{{- end }}

{{- define "funnelcast.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "funnelcast.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: 10001
capabilities:
  drop: [ALL]
{{- end }}

{{- /* How to reach Kafka and what the topics are called: the same for the worker and the topics job. */}}
{{- define "funnelcast.kafkaEnv" -}}
- name: FUNNELCAST_BROKER
  value: {{ required "kafka.brokers is needed: host:port, several by commas" .Values.kafka.brokers | quote }}
- name: FUNNELCAST_APP_ID
  value: {{ include "funnelcast.appId" . | quote }}
- name: FUNNELCAST_PARTITIONS
  value: {{ .Values.partitions | quote }}
- name: FUNNELCAST_REPLICATION_FACTOR
  value: {{ .Values.topics.replicationFactor | quote }}
- name: FUNNELCAST_CLICKSTREAM
  value: {{ .Values.topics.clickstream | quote }}
- name: FUNNELCAST_STAGE_PROBABILITIES
  value: {{ .Values.topics.stageProbabilities | quote }}
- name: FUNNELCAST_TRIGGERS
  value: {{ .Values.topics.triggers | quote }}
- name: FUNNELCAST_DEAD_LETTERS
  value: {{ .Values.topics.deadLetters | quote }}
- name: FUNNELCAST_LATE
  value: {{ .Values.topics.late | quote }}
{{- with .Values.explainOneIn }}
- name: FUNNELCAST_EXPLAIN_ONE_IN
  value: {{ int64 . | quote }}
- name: FUNNELCAST_EXPLANATIONS
  value: {{ $.Values.topics.explanations | quote }}
{{- end }}
- name: FUNNELCAST_SECURITY_PROTOCOL
  value: {{ include "funnelcast.securityProtocol" . }}
{{- if .Values.kafka.sasl.enabled }}
- name: FUNNELCAST_SASL_MECHANISM
  value: {{ .Values.kafka.sasl.mechanism }}
- name: FUNNELCAST_SASL_USERNAME
  value: {{ include "funnelcast.saslUsername" . | quote }}
{{- end }}
{{- if include "funnelcast.hasSecrets" . }}
- name: FUNNELCAST_SECRETS_DIR
  value: /etc/funnelcast/secrets
{{- end }}
{{- if and .Values.kafka.tls.enabled (include "funnelcast.caSecret" .) }}
- name: FUNNELCAST_TLS_CA_FILE
  value: /etc/funnelcast/tls/ca.crt
{{- end }}
{{- if and .Values.kafka.tls.enabled (include "funnelcast.clientSecret" .) }}
- name: FUNNELCAST_TLS_CERT_FILE
  value: /etc/funnelcast/tls/tls.crt
- name: FUNNELCAST_TLS_KEY_FILE
  value: /etc/funnelcast/tls/tls.key
{{- end }}
{{- end }}

{{- define "funnelcast.kafkaMounts" -}}
- name: tmp
  mountPath: /tmp
{{- if include "funnelcast.hasSecrets" . }}
- name: secrets
  mountPath: /etc/funnelcast/secrets
  readOnly: true
{{- end }}
{{- if and .Values.kafka.tls.enabled (or (include "funnelcast.caSecret" .) (include "funnelcast.clientSecret" .)) }}
- name: tls
  mountPath: /etc/funnelcast/tls
  readOnly: true
{{- end }}
{{- end }}

{{- /* Secrets are files named like the variables that they stand for. */}}
{{- define "funnelcast.kafkaVolumes" -}}
- name: tmp
  emptyDir:
    sizeLimit: 512Mi
{{- if include "funnelcast.hasSecrets" . }}
- name: secrets
  projected:
    defaultMode: 0440
    sources:
      {{- if .Values.kafka.sasl.enabled }}
      - secret:
          name: {{ include "funnelcast.saslSecret" . }}
          items:
            - key: {{ .Values.kafka.sasl.passwordKey }}
              path: FUNNELCAST_SASL_PASSWORD
      {{- end }}
      {{- with .Values.holdoutSalt }}
      {{- if .secret }}
      - secret:
          name: {{ .secret }}
          items:
            - key: {{ .key }}
              path: FUNNELCAST_HOLDOUT_SALT
      {{- end }}
      {{- end }}
{{- end }}
{{- if and .Values.kafka.tls.enabled (or (include "funnelcast.caSecret" .) (include "funnelcast.clientSecret" .)) }}
- name: tls
  projected:
    defaultMode: 0440
    sources:
      {{- with include "funnelcast.caSecret" . }}
      - secret:
          name: {{ . }}
          items:
            - key: {{ $.Values.kafka.tls.caKey }}
              path: ca.crt
      {{- end }}
      {{- with include "funnelcast.clientSecret" . }}
      - secret:
          name: {{ . }}
          items:
            - key: {{ $.Values.kafka.tls.certKey }}
              path: tls.crt
            - key: {{ $.Values.kafka.tls.keyKey }}
              path: tls.key
      {{- end }}
{{- end }}
{{- end }}

{{- /* What values.schema.json cannot say. */}}
{{- define "funnelcast.check" -}}
{{- if and (not .Values.autoscaling.enabled) (gt (int .Values.replicas) (int .Values.partitions)) }}
{{- fail (printf "replicas is %d, at most one per partition can work: partitions is %d" (int .Values.replicas) (int .Values.partitions)) }}
{{- end }}
{{- if .Values.autoscaling.enabled }}
{{- if gt (int .Values.autoscaling.maxReplicas) (int .Values.partitions) }}
{{- fail (printf "autoscaling.maxReplicas is %d, at most one per partition can work: partitions is %d" (int .Values.autoscaling.maxReplicas) (int .Values.partitions)) }}
{{- end }}
{{- if gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas) }}
{{- fail "autoscaling.minReplicas is above autoscaling.maxReplicas" }}
{{- end }}
{{- if lt (int .Values.autoscaling.cooldownSeconds) (int .Values.recoverySeconds) }}
{{- fail (printf "autoscaling.cooldownSeconds is %d, shorter than a recovery (recoverySeconds %d): workers would be taken away while they still read their table" (int .Values.autoscaling.cooldownSeconds) (int .Values.recoverySeconds)) }}
{{- end }}
{{- end }}
{{- if and .Values.bundle.image.mount (eq .Values.bundle.source "image") (semverCompare "<1.33.0-0" .Capabilities.KubeVersion.Version) }}
{{- fail (printf "bundle.image.mount needs image volumes, which Kubernetes %s lacks: set it to false, the image is then copied by an init container" .Capabilities.KubeVersion.Version) }}
{{- end }}
{{- if and .Values.strimzi.enabled (eq .Values.topics.create "job") }}
{{- fail "strimzi.enabled makes the topics: set topics.create to strimzi (or none)" }}
{{- end }}
{{- if and (eq .Values.topics.create "strimzi") (not .Values.strimzi.enabled) }}
{{- fail "topics.create is strimzi, which needs strimzi.enabled" }}
{{- end }}
{{- end }}
