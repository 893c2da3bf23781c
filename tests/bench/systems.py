"""The systems that stand side by side: what each one does, and how it is started on one run's topics."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from deploy.kafka.local_kafka import LIBS
from tests.bench.measure import ROOT, Program, Unable
from tests.bench.traffic import PARTITIONS, Committed, Topics
from worker.settings import load_settings
from worker.topics import ensure_topics

PEERS = Path(__file__).resolve().parent / "peers"
STREAMS = LIBS.parent / "streams"  # jars and classes of Kafka Streams
QUIX = Path(sys.prefix) / "quix" / "bin" / "python"  # its pins contradict ours
CACHE_BYTES = 64_000_000
JVM = ("-Xmx1g", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn")
LIGHTER = "64 rows and 8 counts a user, no sessions, order or features"


@dataclass(frozen=True, slots=True)
class Place:
    """Where one run reads, writes and keeps its state; the tag is in the name of every topic that it makes."""

    broker: str
    clicks: str
    tag: str
    folder: Path

    @property
    def answers(self) -> str:
        return f"{self.tag}-answers"

    @property
    def state(self) -> Path:
        return self.folder / self.tag

    @property
    def log(self) -> Path:
        return self.folder / f"{self.tag}.log"


@dataclass(frozen=True, slots=True)
class System:
    """One system: how it is named, what its figures include, how it is started."""

    name: str
    title: str
    includes: str
    start: Callable[[Place, Topics], Program]
    counter: bytes = b"events"  # field of an answer that counts the user's events
    groups: bool = False  # progress is what its consumer group committed, else the answers that are there

    def progress(self, place: Place, topics: Topics) -> Callable[[], int]:
        """Return what counts the events that are done."""
        if self.groups:
            return Committed(place.broker, place.tag, place.clicks)
        return lambda: topics.end(place.answers)


def worker(place: Place, **settings: str) -> Program:
    """Start our worker; settings are named as in worker.settings."""
    names = {name: f"{place.tag}-{name}" for name in ("triggers", "dead_letters", "late")}
    names |= {"stage_probabilities": place.answers, "app_id": place.tag, "clickstream": place.clicks}
    ensure_topics(load_settings(broker=place.broker, partitions=PARTITIONS, **names))
    given = {"broker": place.broker, "partitions": str(PARTITIONS), "http_port": "0", **names, **settings}
    given["state_dir"] = str(place.state)
    environment = {f"FUNNELCAST_{name.upper()}": value for name, value in given.items()}
    return Program([sys.executable, "-m", "worker.cli", "worker"], environment, place.log)


def url(program: Program) -> str:
    """Return where our worker serves /ready and /metrics, once it says so."""
    for _ in range(1200):
        found = re.search(r"(http://\S+/) shows the console", program.log.read_text(errors="replace"))
        if found is not None:
            return found[1]
        program.alive()
        time.sleep(0.1)
    raise Unable(f"the worker did not say where it serves: {program.tail()}")


def metrics(program: Program) -> dict[str, float]:
    """Return the samples of our worker's metrics that have no labels."""
    with urllib.request.urlopen(url(program) + "metrics", timeout=10) as page:
        lines = page.read().decode().splitlines()
    plain = [line.split() for line in lines if line[:1] != "#" and "{" not in line]
    return {name: float(value) for name, value in plain}


def _ours(place: Place, topics: Topics) -> Program:
    return worker(place, bundle="none")


def ours_with_model(place: Place, topics: Topics) -> Program:
    return worker(place)


def environment(place: Place) -> dict[str, str]:
    """Tell a peer where to work."""
    return {
        "BENCH_BROKER": place.broker, "BENCH_APP": place.tag, "BENCH_CLICKS": place.clicks,
        "BENCH_ANSWERS": place.answers, "BENCH_STATE": str(place.state),
    }  # fmt: skip


def _plain_loop(place: Place, topics: Topics) -> Program:
    topics.create(place.answers)
    return Program([sys.executable, "plain_loop.py"], environment(place), place.log, PEERS)


def _faust(place: Place, topics: Topics) -> Program:
    topics.create(place.answers)
    topics.create(f"{place.tag}-state-changelog", **{"cleanup.policy": "compact"})
    topics.create(f"{place.tag}-__assignor-__leader", partitions=1)
    return Program([sys.executable, "faust_agent.py"], environment(place), place.log, PEERS)


def _quix(place: Place, topics: Topics) -> Program:
    if not QUIX.exists():
        raise Unable(f"its environment {QUIX.parent.parent} is missing; make bench installs it")
    topics.create(place.answers)
    return Program([str(QUIX), "quix_app.py"], environment(place), place.log, PEERS)


def _bytewax(place: Place, topics: Topics) -> Program:
    topics.create(place.answers)
    place.state.mkdir(parents=True)
    subprocess.run([sys.executable, "-m", "bytewax.recovery", str(place.state), "1"], check=True, capture_output=True)
    command = [sys.executable, "-m", "bytewax.run", "bytewax_flow:flow", "-r", str(place.state), "-s", "5", "-b", "0"]
    return Program(command, environment(place), place.log, PEERS)


def streams(**given: str) -> Callable[[Place, Topics], Program]:
    """Return the start of Kafka Streams with these BENCH_ variables."""

    def start(place: Place, topics: Topics) -> Program:
        classes = compiled()
        topics.create(place.answers)
        command = ["java", *JVM, "-cp", f"{classes}{os.pathsep}{STREAMS / 'libs'}/*", "Peer"]
        return Program(command, environment(place) | given, place.log)

    return start


def compiled() -> Path:
    """Fetch the jars of Kafka Streams by Maven and compile its job, unless both are there; return the classes."""
    sources = sorted((PEERS / "kstreams").iterdir())
    stamp = "".join(source.read_text() for source in sources)
    done = STREAMS / "sources"
    if done.exists() and done.read_text() == stamp:
        return STREAMS / "classes"
    for program, package in (("mvn", "maven"), ("javac", "openjdk-17-jdk-headless")):
        if shutil.which(program) is None:
            raise Unable(f"`{program}` was not found (Debian: apt-get install {package})")
    shutil.rmtree(STREAMS, ignore_errors=True)
    pom, libs = PEERS / "kstreams" / "pom.xml", STREAMS / "libs"
    _call("mvn", "-B", "-q", "-f", str(pom), "dependency:copy-dependencies", f"-DoutputDirectory={libs}",
          "-DincludeScope=runtime")  # fmt: skip
    java = [str(source) for source in sources if source.suffix == ".java"]
    _call("javac", "-d", str(STREAMS / "classes"), "-cp", f"{libs}/*", *java)
    done.write_text(stamp)
    return STREAMS / "classes"


def _call(*command: str) -> None:
    ran = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if ran.returncode:
        raise Unable(f"`{command[0]}` failed: {ran.stdout[-1000:]}")


_UNCACHED: Mapping[str, str] = {"BENCH_GUARANTEE": "at_least_once", "BENCH_CACHE_BYTES": "0"}
_TUNED = "RocksDB; batch.size 256 KiB, max.poll.records 5,000, 1 thread, -Xmx1g"

OURS = System(
    "funnelcast", "Funnelcast, no model",
    "decode, fold with sessions, order and all features, RocksDB, changelog, one answer per event, exactly once",
    _ours, b"sequence_length", groups=True,
)  # fmt: skip
KAFKA_STREAMS = System(
    "kafka_streams", "Kafka Streams",
    f"{LIGHTER}; JVM, a changelog record per event, at least once; {_TUNED}", streams(**_UNCACHED),
)  # fmt: skip
KAFKA_STREAMS_EXACTLY_ONCE = System(
    "kafka_streams_exactly_once", "Kafka Streams, exactly once",
    f"{LIGHTER}; JVM, a changelog record per event, exactly_once_v2 (a commit every 100 ms); {_TUNED}",
    streams(**_UNCACHED | {"BENCH_GUARANTEE": "exactly_once_v2"}),
)  # fmt: skip
SYSTEMS = {system.name: system for system in (
    OURS,
    System("faust", "Stock Faust", f"{LIGHTER}; RocksDB, changelog, at least once", _faust),
    System("quix", "Quix Streams", f"{LIGHTER}; RocksDB, changelog, at least once, a commit every 5 s", _quix),
    System("bytewax", "Bytewax", f"{LIGHTER}; in memory, no changelog: a snapshot to SQLite every 5 s", _bytewax),
    KAFKA_STREAMS,
    System(
        "kafka_streams_cached", "Kafka Streams, write cache",
        f"{LIGHTER}; JVM, at least once, a cache of {CACHE_BYTES // 10**6} MB that keeps most updates from the "
        f"changelog until it commits (every 30 s); {_TUNED}",
        streams(**_UNCACHED | {"BENCH_CACHE_BYTES": str(CACHE_BYTES)}),
    ),
    KAFKA_STREAMS_EXACTLY_ONCE,
    System(
        "plain_loop", "Plain loop, nothing durable",
        f"{LIGHTER}; confluent-kafka and a dict: no store, no changelog", _plain_loop,
    ),
)}  # fmt: skip
