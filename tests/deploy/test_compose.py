"""One command brings up a Kafka, two workers, clicks, and what watches them; every file and name in it is there."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.checks import PROGRAMS
from worker.cli import COMMANDS
from worker.settings import PREFIX, Settings

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "deploy" / "compose"
PROMETHEUS = ROOT / "deploy" / "prometheus"


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return dict(yaml.safe_load((COMPOSE / "compose.yaml").read_text()))


@pytest.mark.skipif(not (PROGRAMS / "check-jsonschema").exists(), reason="check-jsonschema is not installed")
def test_the_file_follows_the_compose_specification() -> None:
    command = [PROGRAMS / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", COMPOSE / "compose.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_everything_that_is_named_exists(project: dict[str, Any]) -> None:
    services = project["services"]
    for name, service in services.items():
        assert set(service.get("depends_on", {})) <= set(services), name
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (COMPOSE / source).exists(), f"{name}: {source}"
            else:
                assert source in project["volumes"], f"{name}: {source}"
    build = services["worker-1"]["build"]
    assert (COMPOSE / build["context"] / build["dockerfile"]).resolve() == ROOT / "deploy" / "docker" / "Dockerfile"


def test_services_are_of_named_versions_and_reachable_from_this_machine_only(project: dict[str, Any]) -> None:
    for name, service in project["services"].items():
        assert not service["image"].endswith(":latest") and ":" in service["image"], name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        if name != "kafka":
            assert service["read_only"] and service["cap_drop"] == ["ALL"], name


def test_kafka_keeps_its_data_on_its_volume(project: dict[str, Any]) -> None:
    kafka = project["services"]["kafka"]
    assert kafka["environment"]["KAFKA_LOG_DIRS"] in [volume.split(":")[1] for volume in kafka["volumes"]]


def test_our_services_use_commands_and_settings_that_exist(project: dict[str, Any]) -> None:
    known = {PREFIX + field.upper() for field in Settings.model_fields}
    ours = {name: service for name, service in project["services"].items() if service["image"].startswith("funnelcast")}
    assert set(ours) == {"topics", "worker-1", "worker-2", "producer"}
    for service in ours.values():
        assert service["command"][0] in COMMANDS
        assert {name for name in service["environment"] if name.startswith(PREFIX)} <= known
    identities = {ours[name]["environment"]["FUNNELCAST_INSTANCE_ID"] for name in ("worker-1", "worker-2")}
    assert len(identities) == 2
    assert ours["worker-1"]["restart"] == "always", "fatal exits rely on it"


def test_prometheus_watches_both_workers_and_every_rule(project: dict[str, Any]) -> None:
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["worker-1:8080", "worker-2:8080"]}]
    assert job["job_name"] == "funnelcast"
    mounted = dict(volume.split(":")[:2] for volume in project["services"]["prometheus"]["volumes"])
    assert mounted["../prometheus/rules"] == "/etc/prometheus/rules"
    assert config["rule_files"] == ["rules/*.yaml"]
    for manager in config["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"]:
        assert manager.split(":")[0] in project["services"]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
def test_promtool_accepts_the_configuration() -> None:
    command = ["promtool", "check", "config", "prometheus.yml"]
    done = subprocess.run(command, cwd=PROMETHEUS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("amtool") is None, reason="amtool is not installed (Debian: prometheus-alertmanager)")
def test_amtool_accepts_the_configuration_and_routes_by_severity() -> None:
    config = PROMETHEUS / "alertmanager.yml"
    for severity, receiver in {"critical": "page", "warning": "office-hours"}.items():
        command = ["amtool", "config", "routes", "test", f"--config.file={config}", f"severity={severity}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout.strip()) == (0, receiver), done.stderr


def test_the_inhibition_names_an_alert_that_exists() -> None:
    (rule,) = yaml.safe_load((PROMETHEUS / "alertmanager.yml").read_text())["inhibit_rules"]
    alerts = (PROMETHEUS / "rules" / "alerts.yaml").read_text()
    (source,) = rule["source_matchers"]
    assert f"alert: {source.rpartition(' ')[2]}\n" in alerts


def test_grafana_has_its_data_source_and_every_dashboard(project: dict[str, Any]) -> None:
    provisioning = COMPOSE / "grafana"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert source["isDefault"], "the dashboards' variable chooses the default one"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "funnelcast.yaml").read_text())["providers"]
    grafana = project["services"]["grafana"]
    mounted = {volume.split(":")[1]: COMPOSE / volume.split(":")[0] for volume in grafana["volumes"]}
    dashboards = mounted[provider["options"]["path"]]
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (dashboards / Path(home).name).is_file()
    assert len([json.loads(path.read_text()) for path in dashboards.glob("*.json")]) >= 3
