"""A local Apache Kafka (KRaft) for tests, benchmarks and the demonstration.

In: the jars that Maven copies from pom.xml into .kafka/libs, and Java. Out: a bootstrap address; the brokers and their
temporary directory end with the context manager, or the interpreter, and the brokers even where this process is killed.
FUNNELCAST_BROKER=host:port uses a running broker instead, which is then left alone.
"""

from __future__ import annotations

import argparse
import atexit
import base64
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import suppress
from pathlib import Path

from kafka import KafkaAdminClient
from kafka.errors import KafkaError

HERE = Path(__file__).resolve().parent
POM = HERE / "pom.xml"
SHARED = HERE / "server.properties"
LIBS = HERE.parents[1] / ".kafka" / "libs"
START_SECONDS = 60.0
STOP_SECONDS = 30.0
TAIL_LINES = 20
JVM = (
    *("-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto"),
    *("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Dorg.slf4j.simpleLogger.showDateTime=true"),
)
# The watcher kills the group when our end of the pipe closes, however this process ends. It is no PR_SET_PDEATHSIG,
# because that fires when the *thread* that started the broker ends. Java replaces the shell, so signals reach it alone.
WATCHED = 'exec 3<&0; (read _ <&3; kill -9 0) & exec "$@" 3<&- </dev/null'


class LocalKafkaError(Exception):
    """Say in one sentence why there is no local Kafka, and the remedy."""


class LocalKafka:
    """Run one or three Kafka nodes on free ports of 127.0.0.1; nodes are numbered from 1."""

    def __init__(self, nodes: int = 1) -> None:
        self.nodes = nodes
        self.external = os.environ.get("FUNNELCAST_BROKER", "")
        self.bootstrap = self.external
        self._directory = Path()
        self._ports: dict[int, tuple[int, int]] = {}
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> LocalKafka:
        if self.external:
            _require_reachable(self.external)
            return self
        fetch_jars()
        self._directory = Path(tempfile.mkdtemp(prefix="funnelcast-kafka-"))
        atexit.register(self.close)
        try:
            self._format()
            for node in self._ports:
                self._launch(node)
            self._wait(set(self._ports))
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill every node with its whole process group and remove the data."""
        for process in self._processes.values():
            _kill_group(process)
        self._processes.clear()
        if self._directory != Path():
            shutil.rmtree(self._directory, ignore_errors=True)
        atexit.unregister(self.close)

    def stop(self, node: int = 1) -> None:
        """Shut one node down in order (SIGTERM)."""
        process = self._process(node)
        process.send_signal(signal.SIGCONT)
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        _kill_group(process)

    def kill(self, node: int = 1) -> None:
        """End one node at once (SIGKILL)."""
        _kill_group(self._process(node))

    def pause(self, node: int = 1) -> None:
        """Freeze one node (SIGSTOP) and wait until it is; its connections stay open."""
        process = self._process(node)
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)

    def resume(self, node: int = 1) -> None:
        """Let a frozen node go on (SIGCONT)."""
        self._process(node).send_signal(signal.SIGCONT)

    def restart(self, node: int = 1) -> None:
        """Start one node again on its ports and its data, stopping it first where it runs; wait until it answers."""
        if self._process(node).poll() is None:
            self.stop(node)
        self._launch(node)
        self._wait({node})

    def log(self, node: int = 1) -> Path:
        """Return the file that one node's output goes to."""
        return self._directory / f"node-{node}.log"

    def _process(self, node: int) -> subprocess.Popen[bytes]:
        if self.external:
            raise LocalKafkaError(f"the broker {self.external} of FUNNELCAST_BROKER is not ours to stop or start.")
        return self._processes[node]

    def _format(self) -> None:
        free = _free_ports(2 * self.nodes)
        self._ports = {n + 1: (free[2 * n], free[2 * n + 1]) for n in range(self.nodes)}
        self.bootstrap = ",".join(f"127.0.0.1:{client}" for client, _ in self._ports.values())
        voters = ",".join(f"{n}@127.0.0.1:{quorum}:{_kafka_uuid()}" for n, (_, quorum) in self._ports.items())
        cluster = _kafka_uuid()
        running = []
        for node in self._ports:
            config = self._config(node)
            config.write_text(self._properties(node))
            arguments = ("format", "-t", cluster, "-c", str(config), "--initial-controllers", voters)
            with self.log(node).open("ab") as log:
                running.append(subprocess.Popen(_java("kafka.tools.StorageTool", *arguments), stdout=log, stderr=log))
        for node, process in zip(self._ports, running, strict=True):
            if process.wait(START_SECONDS):
                raise LocalKafkaError(f"Kafka could not format its storage in {self._directory}:\n{self._tail(node)}")

    def _config(self, node: int) -> Path:
        return self._directory / f"node-{node}.properties"

    def _properties(self, node: int) -> str:
        client, quorum = self._ports[node]
        in_sync = 2 if self.nodes > 1 else 1
        values = {
            "node.id": node,
            "listeners": f"PLAINTEXT://127.0.0.1:{client},CONTROLLER://127.0.0.1:{quorum}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{client}",
            "controller.quorum.bootstrap.servers": ",".join(f"127.0.0.1:{q}" for _, q in self._ports.values()),
            "log.dirs": self._directory / f"data-{node}",
            "default.replication.factor": self.nodes,
            "min.insync.replicas": in_sync,
            "offsets.topic.replication.factor": self.nodes,
            "transaction.state.log.replication.factor": self.nodes,
            "transaction.state.log.min.isr": in_sync,
        }
        return SHARED.read_text() + "".join(f"{name}={value}\n" for name, value in values.items())

    def _launch(self, node: int) -> None:
        command = ("sh", "-c", WATCHED, "sh", *_java("kafka.Kafka", str(self._config(node))))
        with self.log(node).open("ab") as log:
            self._processes[node] = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
            )

    def _wait(self, nodes: set[int]) -> None:
        """Wait until each of these nodes answers and is a member of the cluster."""
        deadline = time.monotonic() + START_SECONDS
        while waiting := {node for node in nodes if not self._answers(node)}:
            for node in waiting:
                if self._processes[node].poll() is not None:
                    raise LocalKafkaError(f"Kafka node {node} ended while starting:\n{self._tail(node)}")
            if time.monotonic() > deadline:
                raise LocalKafkaError(f"Kafka did not answer in {START_SECONDS:.0f} s:\n{self._tail(min(waiting))}")
            time.sleep(0.1)

    def _answers(self, node: int) -> bool:
        port, _ = self._ports[node]
        if not _listens(port):
            return False
        try:
            admin = KafkaAdminClient(bootstrap_servers=f"127.0.0.1:{port}", bootstrap_timeout_ms=3000)
            try:
                brokers = admin.describe_cluster()["brokers"]
            finally:
                admin.close()
        except KafkaError:
            return False
        return any(broker["broker_id"] == node and not broker["is_fenced"] for broker in brokers)

    def _tail(self, node: int) -> str:
        return "\n".join(self.log(node).read_text(errors="replace").splitlines()[-TAIL_LINES:])


def fetch_jars() -> None:
    """Copy Kafka's jars into .kafka/libs by Maven, unless those of this pom.xml are there."""
    _require("java", "Java 17 or later (Debian: apt-get install openjdk-17-jre-headless)")
    fetched = LIBS / POM.name
    if fetched.exists() and fetched.read_bytes() == POM.read_bytes():
        return
    _require("mvn", "Apache Maven (Debian: apt-get install maven)")
    LIBS.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=LIBS.parent) as scratch:
        libs = Path(scratch) / "libs"
        command = ["mvn", "-B", "-q", "-f", str(POM), "dependency:copy-dependencies"]
        command += [f"-DoutputDirectory={libs}", "-DincludeScope=runtime"]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            tail = "\n".join(done.stdout.splitlines()[-TAIL_LINES:])
            raise LocalKafkaError(f"Maven could not fetch Kafka's jars; check its access to the repository:\n{tail}")
        shutil.copy(POM, libs)
        shutil.rmtree(LIBS, ignore_errors=True)
        libs.rename(LIBS)


def _require(program: str, what: str) -> None:
    if shutil.which(program) is None:
        raise LocalKafkaError(
            f"the local Kafka needs {what}, but `{program}` was not found; "
            "install it, or set FUNNELCAST_BROKER=host:port to use a running broker."
        )


def _require_reachable(bootstrap: str) -> None:
    host, _, port = bootstrap.split(",")[0].rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError) as error:
        raise LocalKafkaError(
            f"no broker answers at FUNNELCAST_BROKER={bootstrap} ({error}); "
            "start it, or unset the variable to start a local one."
        ) from None


def _java(main: str, *arguments: str) -> tuple[str, ...]:
    return ("java", *JVM, "-cp", f"{LIBS}/*", main, *arguments)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


def _free_ports(count: int) -> list[int]:
    """Choose below the ephemeral range, so that no outgoing connection takes the port of a stopped node."""
    ports: list[int] = []
    while len(ports) < count:
        port = random.randrange(15_000, 32_000)
        if port not in ports and not _taken(port):
            ports.append(port)
    return ports


def _taken(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
        return False


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _kafka_uuid() -> str:
    """Return a random id as Kafka writes it, without dashes, which would read as an option."""
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "A")


def main() -> int:
    """Run a local Kafka in the foreground until interrupted."""
    parser = argparse.ArgumentParser(description="Run a local Apache Kafka until interrupted.")
    parser.add_argument("--nodes", type=int, choices=(1, 3), default=1, help="cluster size (default 1)")
    parser.add_argument("--fetch", action="store_true", help="only fetch the jars")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        if arguments.fetch:
            fetch_jars()
            return 0
        with LocalKafka(arguments.nodes) as kafka:
            print(f"Kafka answers at {kafka.bootstrap}; end it with Ctrl-C.", flush=True)
            signal.pause()
    except LocalKafkaError as error:
        print(f"local kafka: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
