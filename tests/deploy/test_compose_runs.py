"""The compose file's Kafka, topics, workers and producer run as it says, as processes: names and paths become local."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from kafka import KafkaConsumer
from kafka.admin import KafkaAdminClient
from local_kafka import JVM, LIBS, fetch_jars

from tests.support.stack import ROOT, free_port, wait

COMPOSE = ROOT / "deploy" / "compose" / "compose.yaml"
ENTRY = [sys.executable, "-m", "worker.image"]  # of the images
SCRIPTS_ONLY = {"KAFKA_HEAP_OPTS"}  # read by Kafka's scripts, no property of the broker
ENOUGH = 300  # answers

pytestmark = pytest.mark.skipif(
    bool(os.environ.get("FUNNELCAST_BROKER")), reason="the compose file's own Kafka is what is tried"
)


class Services:
    """The services of the compose file as child processes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.services: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())["services"]
        self.ports = {name: free_port() for name in ("9092", "9094", "29092", "worker-1", "worker-2")}
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def local(self, text: str) -> str:
        """Put this machine's address and ports in the place of the network's, and our folders in that of volumes."""
        text = re.sub(r"\bkafka:(\d+)", r"127.0.0.1:\1", text)
        text = re.sub(r":(9092|9094|29092)\b", lambda port: f":{self.ports[port[1]]}", text)
        text = text.replace("/var/lib/kafka/data", str(self.directory / "kafka"))
        text = text.replace("/clicks/", f"{ROOT / 'deploy' / 'demo'}/")
        return re.sub(r"\$\{(\w+):-(.*?)\}", lambda name: os.environ.get(name[1], name[2]), text)

    def start(self, name: str, command: list[str], environment: dict[str, str]) -> None:
        with self.log(name).open("ab") as log:
            self.running[name] = subprocess.Popen(
                command, env=os.environ | environment, stdout=log, stderr=log, cwd=ROOT
            )

    def start_kafka(self) -> None:
        given = self.services["kafka"]["environment"]
        properties = self.directory / "server.properties"
        properties.write_text("".join(
            f"{name.removeprefix('KAFKA_').lower().replace('_', '.')}={self.local(value)}\n"
            for name, value in given.items() if name not in SCRIPTS_ONLY
        ))  # fmt: skip
        java = ["java", *JVM, "-cp", f"{LIBS}/*"]
        storage = [*java, "kafka.tools.StorageTool", "format", "-t", "5L6g3nShT-eMCtKwX86swA", "-c", str(properties)]
        done = subprocess.run(storage, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        self.start("kafka", [*java, "kafka.Kafka", str(properties)], {})

    def start_ours(self, name: str) -> None:
        service = self.services[name]
        here = {
            "FUNNELCAST_STATE_DIR": str(self.directory / name),
            "FUNNELCAST_HTTP_PORT": str(self.ports.get(name, 0)),
        }
        environment = {key: self.local(value) for key, value in service["environment"].items()}
        self.start(name, [*ENTRY, *map(self.local, service["command"])], environment | here)

    def log(self, name: str) -> Path:
        return self.directory / f"{name}.log"

    def tail(self) -> str:
        return "\n".join(self.log(name).read_text(errors="replace")[-1500:] for name in self.running)

    def is_healthy(self, name: str) -> bool:
        assert self.running[name].poll() is None, self.tail()
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{self.ports[name]}/ready", timeout=2):
            return True
        return False

    def assignments(self, name: str) -> float:
        """Return how often the worker was given partitions."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[name]}/metrics", timeout=5) as page:
            found = re.search(r"^funnelcast_partition_assignments_total (\S+)", page.read().decode(), re.MULTILINE)
        assert found is not None
        return float(found[1])

    def close(self) -> None:
        for process in self.running.values():
            process.kill()
            process.wait(30)


@pytest.fixture
def services(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Services]:
    fetch_jars()
    monkeypatch.setenv("RATE", "200")
    services = Services(tmp_path)
    yield services
    services.close()


def test_clicks_that_the_producer_replays_are_answered_by_both_workers(services: Services) -> None:
    services.start_kafka()
    for _ in range(5):  # restart: on-failure:5
        services.start_ours("topics")
        if services.running["topics"].wait(60) == 0:
            break
        time.sleep(2)
    assert services.running["topics"].returncode == 0, services.tail()
    workers = ("worker-1", "worker-2")
    for name in workers:
        services.start_ours(name)
    wait(lambda: all(map(services.is_healthy, workers)), 120, services.tail)
    services.start_ours("producer")
    outside = f"127.0.0.1:{services.ports['29092']}"  # the listener for programs of this machine
    consumer = KafkaConsumer(
        "funnel.stage-probabilities",
        bootstrap_servers=outside,
        isolation_level="read_committed",
        auto_offset_reset="earliest",
    )
    answered: set[int] = set()
    seen = 0

    def enough() -> bool:
        nonlocal seen
        for partition, records in consumer.poll(500).items():
            answered.add(partition.partition)
            seen += len(records)
        return seen >= ENOUGH and len(answered) == 4

    wait(enough, 120, services.tail)
    consumer.close()
    assert any((services.directory / "kafka").glob("funnel.stage-probabilities-*")), "Kafka writes to its volume"

    # A restart keeps its name in the group and its partitions; the other worker is not troubled.
    assert members(outside) == set(workers)
    before = services.assignments("worker-2")
    services.running["worker-1"].terminate()
    assert services.running["worker-1"].wait(60) == 0
    services.start_ours("worker-1")
    wait(lambda: services.is_healthy("worker-1"), 120, services.tail)
    assert services.assignments("worker-2") == before
    assert members(outside) == set(workers)

    services.running["producer"].kill()
    for name in workers:
        services.running[name].terminate()
    assert [services.running[name].wait(60) for name in workers] == [0, 0], services.tail()


def members(broker: str) -> set[str]:
    """Return the static names of the group's members."""
    admin = KafkaAdminClient(bootstrap_servers=broker)
    group = admin.describe_groups(["funnelcast"])["funnelcast"]
    admin.close()
    return {member["group_instance_id"] for member in group["members"]}
