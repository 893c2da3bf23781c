"""What the chart renders keeps its promises: restarts, scaling, secrets, topics, bundles, rules, who may reach what."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from tests.support.chart import (
    CHART,
    ROOT,
    RULES,
    SETS,
    documents,
    environment,
    find,
    pods,
    rendered,
    values_of,
    with_values,
    worker,
)
from worker.settings import PREFIX, SECRETS_DIR, Settings, load_settings
from worker.topics import needed


@pytest.mark.parametrize("name", SETS)
def test_every_variable_is_a_setting_of_the_worker(name: str) -> None:
    known = {PREFIX + field.upper() for field in Settings.model_fields} | {SECRETS_DIR}
    for pod in pods(name):
        assert pod["spec"]["enableServiceLinks"] is False, "a Service funnelcast would inject FUNNELCAST_PORT"
        for container in pod["spec"]["containers"]:
            assert set(environment(container)) <= known


@pytest.mark.parametrize("name", SETS)
def test_every_container_is_restricted(name: str) -> None:
    for pod in pods(name):
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["securityContext"]["runAsUser"] == spec["securityContext"]["fsGroup"] == 10001
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            context = container["securityContext"]
            assert context["runAsNonRoot"] and context["readOnlyRootFilesystem"]
            assert not context["allowPrivilegeEscalation"]
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}


@pytest.mark.parametrize("name", SETS)
def test_resources_carry_the_recommended_labels_and_the_selectors_find_the_pods(name: str) -> None:
    recommended = {"name", "instance", "version", "managed-by", "part-of"}
    for document in documents(rendered(name)):
        labels = document["metadata"]["labels"]
        assert {f"app.kubernetes.io/{label}" for label in recommended} <= set(labels), document["kind"]
        assert labels["helm.sh/chart"].startswith("funnelcast-")
        assert document["metadata"]["name"].startswith("shop-funnelcast") or document["kind"] == "KafkaTopic"
    labels = find(name, "StatefulSet")["spec"]["template"]["metadata"]["labels"].items()
    for kind, path in {"Service": "selector", "PodDisruptionBudget": "selector.matchLabels"}.items():
        selector = find(name, kind)["spec"]
        for part in path.split("."):
            selector = selector[part]
        assert selector.items() <= labels, kind


def test_a_worker_is_restarted_known_by_its_pod_and_given_time() -> None:
    chart = yaml.safe_load((CHART / "values.yaml").read_text())
    spec = find("default", "StatefulSet")["spec"]
    pod, container = spec["template"]["spec"], worker("default")
    assert pod["restartPolicy"] == "Always"
    assert environment(container)["FUNNELCAST_INSTANCE_ID"] == {"fieldRef": {"fieldPath": "metadata.name"}}
    probe = container["startupProbe"]
    assert probe["failureThreshold"] * probe["periodSeconds"] >= chart["recoverySeconds"]
    from worker.app import REBALANCE_SECONDS

    producers_seconds, requests_seconds = 3.0, 30.0
    assert pod["terminationGracePeriodSeconds"] >= REBALANCE_SECONDS + producers_seconds + requests_seconds
    assert spec["serviceName"] == find("default", "Service")["metadata"]["name"]
    assert find("default", "Service")["spec"]["clusterIP"] == "None"
    (claim,) = spec["volumeClaimTemplates"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert environment(container)["FUNNELCAST_STATE_DIR"].startswith(mounts[claim["metadata"]["name"]] + "/")


def test_scaling_stays_within_the_partitions_and_waits_longer_than_a_recovery() -> None:
    scaled, chart = find("strimzi", "ScaledObject")["spec"], yaml.safe_load((CHART / "values.yaml").read_text())
    assert scaled["maxReplicaCount"] <= values_of("strimzi")["partitions"]
    (trigger,) = scaled["triggers"]
    assert trigger["metadata"]["allowIdleConsumers"] == "false"
    assert trigger["metadata"]["consumerGroup"] == environment(worker("strimzi"))["FUNNELCAST_APP_ID"]
    down = scaled["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]
    assert min(scaled["cooldownPeriod"], down["stabilizationWindowSeconds"]) > chart["recoverySeconds"]
    assert "replicas" not in find("strimzi", "StatefulSet")["spec"], "the autoscaler owns the number"
    assert find("default", "StatefulSet")["spec"]["replicas"] == 2


def test_one_value_asks_for_a_gpu_tolerates_its_nodes_and_takes_the_image() -> None:
    container = worker("gpu")
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert container["resources"]["limits"]["memory"] == "4Gi"
    assert container["image"].endswith("-gpu")
    tolerations = find("gpu", "StatefulSet")["spec"]["template"]["spec"]["tolerations"]
    assert tolerations == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert "nvidia.com/gpu" not in worker("default")["resources"]["limits"]


@pytest.mark.parametrize("name", ["strimzi", "sasl", "mtls"])
def test_secrets_are_files_that_the_settings_read_and_never_variables(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod, container = find(name, "StatefulSet")["spec"]["template"]["spec"], worker(name)
    assert "secretKeyRef" not in json.dumps(pod)
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    for volume in pod["volumes"]:
        for source in volume.get("projected", {}).get("sources", []):
            for item in source["secret"]["items"]:
                path = tmp_path / mounts[volume["name"]].lstrip("/") if volume["name"] in mounts else tmp_path / "init"
                path.mkdir(parents=True, exist_ok=True)
                (path / item["path"]).write_text("from a secret")
    for variable, value in environment(container).items():
        inside = isinstance(value, str) and value.startswith("/etc/")
        monkeypatch.setenv(variable, str(tmp_path / value.lstrip("/")) if inside else str(value))
    settings = load_settings()
    assert settings.security_protocol == ("SSL" if name == "mtls" else "SASL_SSL")
    assert settings.tls_ca_file is not None
    if name == "mtls":
        assert settings.tls_key_file is not None
    else:
        assert settings.sasl_password.get_secret_value() == "from a secret"
        assert settings.sasl_username == ("funnelcast" if name == "sasl" else "shop-funnelcast")


def test_strimzi_makes_the_topics_that_the_worker_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in environment(worker("mtls")).items():
        if isinstance(value, str) and not value.startswith("/"):
            monkeypatch.setenv(variable, value)
    monkeypatch.setenv("FUNNELCAST_SECURITY_PROTOCOL", "PLAINTEXT")
    made = {d["spec"]["topicName"]: d["spec"] for d in documents(rendered("mtls")) if d["kind"] == "KafkaTopic"}
    wanted = {topic.name: topic for topic in needed(load_settings())}
    assert set(made) == set(wanted) > {"funnel.explanations"}
    for name, topic in wanted.items():
        assert made[name]["partitions"] == topic.partitions
        assert topic.configs.items() <= made[name]["config"].items()


def test_the_user_may_do_what_the_worker_does_and_no_more() -> None:
    user = find("strimzi", "KafkaUser")
    acls = {(a["resource"]["type"], a["resource"].get("name")): a for a in user["spec"]["authorization"]["acls"]}
    app = environment(worker("strimzi"))["FUNNELCAST_APP_ID"]
    assert "Write" not in acls["topic", "clickstream"]["operations"]
    assert "Read" not in acls["topic", "funnel.triggers"]["operations"]
    assert {"Read", "Write"} <= set(acls["topic", f"{app}-user-sequences-changelog"]["operations"])
    transactional = acls["transactionalId", f"{app}-"]
    assert transactional["resource"]["patternType"] == "prefix"
    assert ("group", app) in acls
    assert "funnel.explanations" not in {name for _, name in acls}
    explaining = find("mtls", "KafkaUser")["spec"]["authorization"]["acls"]
    assert "Write" in next(a for a in explaining if a["resource"].get("name") == "funnel.explanations")["operations"]
    assert user["metadata"]["name"] == environment(worker("strimzi"))["FUNNELCAST_SASL_USERNAME"]


def test_the_bundle_comes_from_each_of_its_sources() -> None:
    assert "FUNNELCAST_BUNDLE" not in environment(worker("default"))
    volume = find("gpu", "StatefulSet")["spec"]["template"]["spec"]["volumes"]
    assert {"claimName": "models", "readOnly": True} in [v.get("persistentVolumeClaim") for v in volume]
    (copy,) = find("mtls", "StatefulSet")["spec"]["template"]["spec"]["initContainers"]
    assert (copy["image"], copy["command"]) == ("models/taobao:3", ["cp", "-r"])
    (fetch,) = find("sasl", "StatefulSet")["spec"]["template"]["spec"]["initContainers"]
    assert fetch["command"] == ["/opt/funnelcast/bin/python", "-m", "worker.fetch"]
    for name in ("gpu", "mtls", "sasl"):
        assert environment(worker(name))["FUNNELCAST_BUNDLE"] == "/bundle"
    none = worker(with_values("default", bundle={"source": "none"}))
    assert environment(none)["FUNNELCAST_BUNDLE"] == "none"


def test_the_rules_are_those_that_the_unit_tests_prove() -> None:
    source = {path.name: path.read_text() for path in RULES.glob("*.yaml")}
    assert source, f"no rules in {RULES}"
    copied = {path.name: path.read_text() for path in (CHART / "rules").glob("*.yaml")}
    assert copied == source, f"cp {RULES}/*.yaml {CHART}/rules/"
    groups = [group for text in source.values() for group in yaml.safe_load(text)["groups"]]
    watched = with_values("default", monitoring={"rules": {"enabled": True}})
    rendered_groups = find(watched, "PrometheusRule")["spec"]["groups"]
    assert sorted(rendered_groups, key=lambda group: group["name"]) == sorted(groups, key=lambda group: group["name"])
    jobs = {match for text in source.values() for match in re.findall(r'job=~"([^"]*)"', text)}
    part_of = find("strimzi", "StatefulSet")["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/part-of"]
    assert find("strimzi", "PodMonitor")["spec"]["jobLabel"] == "app.kubernetes.io/part-of"
    assert all(re.fullmatch(job, part_of) for job in jobs)


def test_grafana_finds_the_dashboards_as_they_are_committed() -> None:
    maps = [d for d in documents(rendered("strimzi")) if d["kind"] == "ConfigMap"]
    found = {name: text for document in maps for name, text in document["data"].items()}
    committed = (ROOT / "deploy" / "grafana" / "dashboards").glob("*.json")
    assert found == {f"funnelcast-{path.name}": path.read_text() for path in committed}
    for document in maps:
        assert document["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert document["metadata"]["annotations"] == {"grafana_folder": "Funnelcast"}


def test_alerts_link_the_runbook_where_it_is_published() -> None:
    groups = find("strimzi", "PrometheusRule")["spec"]["groups"]
    links = [rule["annotations"]["runbook_url"] for group in groups for rule in group["rules"] if "alert" in rule]
    assert links and all(link.startswith("https://wiki.example.com/funnelcast/runbook.md#funnelcast") for link in links)


def test_the_http_port_is_open_to_the_monitoring_namespace_only() -> None:
    spec = find("default", "NetworkPolicy")["spec"]
    (rule,) = spec["ingress"]
    assert rule["ports"] == [{"port": "http", "protocol": "TCP"}]
    assert rule["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    closed = find(with_values("default", networkPolicy={"metricsFrom": []}), "NetworkPolicy")["spec"]
    assert "Ingress" in closed["policyTypes"] and not closed.get("ingress")


@pytest.mark.parametrize(
    ("endpoint", "port"),
    [("http://collector.tracing:4318/v1/traces", 4318), ("https://otlp.example.com/v1/traces", 443)],
)
def test_traces_reach_their_collector(endpoint: str, port: int) -> None:
    values = with_values("default", tracing={"endpoint": endpoint, "share": 0.5})
    assert environment(worker(values))["FUNNELCAST_TRACING_ENDPOINT"] == endpoint
    assert environment(worker(values))["FUNNELCAST_TRACING_SHARE"] == "0.5"
    assert [{"port": port, "protocol": "TCP"}] in [
        rule["ports"] for rule in find(values, "NetworkPolicy")["spec"]["egress"]
    ]
    assert "FUNNELCAST_TRACING_ENDPOINT" not in environment(worker("default"))


def test_the_notes_say_how_to_produce_a_first_event() -> None:
    notes = rendered("default")["funnelcast/templates/NOTES.txt"]
    assert "exec -i shop-funnelcast-0" in notes
    assert "funnelcast replay" in notes
    (event,) = re.findall(r"^\s*(\{.*\})$", notes, re.M)
    assert set(json.loads(event)) >= {"user_id", "event", "timestamp"}
    assert "read_committed" in notes


def test_the_version_is_the_one_of_the_distribution() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert f'version = "{chart["appVersion"]}"' in project
