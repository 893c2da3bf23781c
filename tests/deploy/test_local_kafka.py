import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import local_kafka
import pytest
from kafka import KafkaAdminClient
from kafka.errors import KafkaError
from local_kafka import LocalKafka, LocalKafkaError

from tests.support.topics import create_topics


@pytest.fixture(autouse=True)
def own_brokers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests start and stop brokers of their own, also where a running one is named."""
    monkeypatch.delenv("FUNNELCAST_BROKER", raising=False)


@pytest.fixture(scope="module")
def node() -> Iterator[LocalKafka]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("FUNNELCAST_BROKER", raising=False)
        with LocalKafka() as kafka:
            yield kafka


def topics(bootstrap: str) -> set[str]:
    admin = KafkaAdminClient(bootstrap_servers=bootstrap.split(","), bootstrap_timeout_ms=5000)
    try:
        return set(admin.list_topics())
    finally:
        admin.close()


def topics_soon(bootstrap: str) -> set[str]:
    """List topics; a client may ask the node that is gone until the others have noticed."""
    deadline = time.monotonic() + 20
    while True:
        try:
            return topics(bootstrap)
        except KafkaError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def state(process: int) -> str:
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_killed_node_comes_back_on_its_address_with_its_topics(node: LocalKafka) -> None:
    create_topics(node.bootstrap, "kept", replicas=1)
    node.kill()
    with pytest.raises(KafkaError):
        topics(node.bootstrap)
    node.restart()
    assert "kept" in topics(node.bootstrap)


def test_a_stopped_node_comes_back_and_a_frozen_one_goes_on(node: LocalKafka) -> None:
    node.stop()
    node.restart()
    process = node._processes[1].pid
    node.pause()
    assert state(process) == "T"
    node.resume()
    assert state(process) != "T"
    assert topics(node.bootstrap) is not None


def test_topics_are_never_created_by_asking_for_them(node: LocalKafka) -> None:
    admin = KafkaAdminClient(bootstrap_servers=node.bootstrap)
    assert admin.describe_topics(["not-there"])[0]["error_code"] == 3
    admin.close()


def test_three_nodes_serve_on_when_one_is_killed() -> None:
    with LocalKafka(3) as kafka:
        create_topics(kafka.bootstrap, "replicated", replicas=3)
        kafka.kill(1)
        assert "replicated" in topics_soon(kafka.bootstrap)
        directory = kafka.log(1).parent
        processes = [process.pid for process in kafka._processes.values()]
    assert not directory.exists()
    assert not [pid for pid in processes if Path(f"/proc/{pid}").exists()]


def test_brokers_end_with_a_process_that_is_killed() -> None:
    script = f"""
import sys, time
sys.path.insert(0, {os.fspath(local_kafka.HERE)!r})
from local_kafka import LocalKafka
with LocalKafka() as kafka:
    print(kafka._processes[1].pid, kafka.log().parent, flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        broker, directory = parent.stdout.readline().split()
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{broker}").exists() and state(int(broker)) != "Z" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{broker}").exists() or state(int(broker)) == "Z"
    subprocess.run(["rm", "-r", directory], check=True)


def test_a_node_that_cannot_start_shows_the_tail_of_its_log(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(LocalKafka):
        def _launch(self, node: int) -> None:
            with self._config(node).open("a") as config:
                config.write("num.io.threads=none\n")
            super()._launch(node)

    with pytest.raises(LocalKafkaError, match=r"(?s)^Kafka node 1 ended while starting:\n.*num\.io\.threads"), Broken():
        pass


def test_a_broker_that_runs_is_used_and_left_alone(node: LocalKafka, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUNNELCAST_BROKER", node.bootstrap)
    with LocalKafka() as kafka:
        assert kafka.bootstrap == node.bootstrap
        with pytest.raises(LocalKafkaError, match="not ours to stop"):
            kafka.kill()
    assert topics(node.bootstrap) is not None


def test_a_named_broker_that_does_not_answer_is_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUNNELCAST_BROKER", "127.0.0.1:1")
    with pytest.raises(LocalKafkaError, match=r"^no broker answers at FUNNELCAST_BROKER=127.0.0.1:1 .*; start it, or"):
        LocalKafka().__enter__()


@pytest.mark.parametrize(("program", "package"), [("java", "openjdk-17"), ("mvn", "maven")])
def test_without_java_or_maven_one_sentence_says_what_to_install(
    program: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "java").touch(0o755)
    monkeypatch.setenv("PATH", os.fspath(tmp_path if program == "mvn" else tmp_path / "nothing"))
    monkeypatch.setattr(local_kafka, "LIBS", tmp_path / "libs")
    with pytest.raises(LocalKafkaError, match=f"`{program}` was not found; install it") as refusal:
        local_kafka.fetch_jars()
    assert package in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_the_command_runs_a_broker_until_it_is_told_to_end(tmp_path: Path) -> None:
    command = [sys.executable, os.fspath(local_kafka.HERE / "local_kafka.py")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": os.fspath(tmp_path)}
    ) as run:
        assert run.stdout is not None
        said = run.stdout.readline()
        assert topics(said.split()[3].rstrip(";")) is not None
        run.terminate()
    assert run.returncode == 0
    assert not list(tmp_path.iterdir())
