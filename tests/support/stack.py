"""A whole Funnelcast on a real broker: topics, workers, a producer, committed readers."""

from __future__ import annotations

import collections
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError

from model.contract.events import ClickEvent
from tests.support.expectation import Expectation, Kept, expect, place_of, source_of
from worker.settings import load_settings
from worker.topics import ensure_topics

ROOT = Path(__file__).parent.parent.parent
CONTRACT_KEYS = (b"s", b"p", b"t")
FAULTY = Path(__file__).parent / "faulty_worker.py"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Stack:
    """Topics and workers of one test; `environment` goes to every worker."""

    broker: str
    unique: Callable[[str], str]
    directory: Path
    partitions: int = 4
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.app_id = self.unique("app")
        one_in = self.environment.get("FUNNELCAST_EXPLAIN_ONE_IN")
        names = ["clickstream", "stage_probabilities", "triggers", "dead_letters", "late"]
        names += ["explanations"] if one_in else []
        self.topics = {name: self.unique(name.replace("_", "-")) for name in names}
        self.settings = load_settings(
            broker=self.broker,
            app_id=self.app_id,
            partitions=self.partitions,
            state_dir=self.directory / "none",
            explain_one_in=one_in,
            **self.topics,
        )
        ensure_topics(self.settings)
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        self.ports: dict[str, int] = {}
        self.produced = 0

    # workers

    def start(self, tag: str, fault: str = "", arguments: Sequence[str] = (), **environment: str) -> None:
        """Start a worker; `fault` as in faulty_worker.py."""
        self.ports[tag] = free_port()
        variables = {
            "FUNNELCAST_BROKER": self.broker,
            "FUNNELCAST_APP_ID": self.app_id,
            "FUNNELCAST_PARTITIONS": str(self.partitions),
            "FUNNELCAST_STATE_DIR": str(self.state(tag)),
            "FUNNELCAST_HTTP_PORT": str(self.ports[tag]),
            "FUNNELCAST_SESSION_TIMEOUT_SECONDS": "4",
            **{f"FUNNELCAST_{name.upper()}": topic for name, topic in self.topics.items()},
            **self.environment,
            **environment,
            "STACK_FAULT": fault,
        }
        with (self.directory / f"{tag}.log").open("ab") as log:
            self.workers[tag] = subprocess.Popen(
                [sys.executable, FAULTY, "worker", *arguments],
                env=os.environ | variables,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                start_new_session=True,
            )

    def state(self, tag: str) -> Path:
        return self.directory / f"{tag}-state"

    def log(self, tag: str) -> str:
        return (self.directory / f"{tag}.log").read_text(errors="replace")

    def is_ready(self, tag: str) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[tag]}/ready", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def metrics(self, tag: str) -> dict[str, float]:
        """Return every sample of a worker's metrics by its name with labels; none while the worker does not answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[tag]}/metrics", timeout=5) as page:
                lines = page.read().decode().splitlines()
        except OSError:
            return {}
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[:1] != "#")}

    def wait_ready(self, tag: str, seconds: float = 90) -> None:
        wait(lambda: self.is_ready(tag) or self.workers[tag].poll() is not None, seconds, lambda: self.log(tag)[-3000:])
        assert self.workers[tag].poll() is None, (
            f"{tag} ended with {self.workers[tag].returncode}:\n{self.log(tag)[-3000:]}"
        )

    def signal(self, tag: str, number: signal.Signals) -> None:
        self.workers[tag].send_signal(number)
        if number == signal.SIGKILL:
            self.workers[tag].wait(30)

    def terminate(self, tag: str, seconds: float = 60) -> int:
        """Ask the worker to drain; return its exit code."""
        self.workers[tag].send_signal(signal.SIGTERM)
        return self.workers[tag].wait(seconds)

    def wipe(self, tag: str) -> None:
        shutil.rmtree(self.state(tag), ignore_errors=True)

    def close(self) -> None:
        for worker in self.workers.values():
            if worker.poll() is None:
                worker.kill()
                worker.wait(30)

    # the log

    def producer(self, **options: Any) -> KafkaProducer:
        return KafkaProducer(bootstrap_servers=self.broker, linger_ms=5, acks="all", **options)

    def produce(self, events: Iterable[ClickEvent], per_second: float | None = None) -> None:
        """Produce events in order, keyed by user, optionally at a steady rate."""
        producer, started = self.producer(), time.monotonic()
        for sent, event in enumerate(events):
            producer.send(self.topics["clickstream"], key=event.user_id.encode(), value=wire(event))
            self.produced += 1
            if per_second is not None and (ahead := sent / per_second - (time.monotonic() - started)) > 0.02:
                time.sleep(ahead)
        producer.flush()
        producer.close()

    def produce_in_background(self, events: Iterable[ClickEvent], per_second: float) -> threading.Thread:
        thread = threading.Thread(target=self.produce, args=(events, per_second), daemon=True)
        thread.start()
        return thread

    def read(self, topic: str, isolation: str = "read_committed") -> list[Kept]:
        """Read a topic from its beginning to its end."""
        consumer = KafkaConsumer(
            bootstrap_servers=self.broker,
            isolation_level=isolation,
            enable_auto_commit=False,
            max_partition_fetch_bytes=8 << 20,
        )
        tps = [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic))]
        consumer.assign(tps)
        consumer.seek_to_beginning(*tps)
        ends, kept = consumer.end_offsets(tps), []
        while any(consumer.position(tp) < ends[tp] for tp in tps):
            for tp, records in consumer.poll(500, max_records=20_000).items():
                kept += [
                    Kept(tp.partition, r.offset, r.timestamp, r.key, r.value, {k: v.decode() for k, v in r.headers})
                    for r in records
                ]
        consumer.close()
        return kept

    def lag(self) -> int:
        """Messages of the click stream that the group has not committed."""
        tps = [TopicPartition(self.topics["clickstream"], number) for number in range(self.partitions)]
        consumer = KafkaConsumer(bootstrap_servers=self.broker)
        ends = consumer.end_offsets(tps)
        consumer.close()
        admin = KafkaAdminClient(bootstrap_servers=self.broker)
        try:
            committed = admin.list_group_offsets({self.app_id: tps})[self.app_id]
        except KafkaError:  # the group has no coordinator yet
            committed = {}
        admin.close()
        return sum(ends[tp] - (max(0, committed[tp].offset) if tp in committed else 0) for tp in tps)

    def wait_answered(self, seconds: float = 120) -> None:
        wait(
            lambda: self.lag() == 0,
            seconds,
            lambda: "\n".join(self.log(tag)[-2000:] for tag in self.workers),
            every=0.5,
        )
        time.sleep(1.5)  # two ticks: silent users' sessions are closed

    # what is there

    def table(self) -> dict[tuple[int, bytes], bytes]:
        """The table as its changelog has it: the last committed value of each key."""
        rows: dict[tuple[int, bytes], bytes] = {}
        for record in self.read(f"{self.app_id}-user-sequences-changelog"):
            assert record.key is not None
            if record.value is None:
                rows.pop((record.partition, record.key), None)
            else:
                rows[record.partition, record.key] = record.value
        return rows

    def verify(self) -> Expectation:
        """Compare everything that the workers left with a plain fold of the log; return what the fold says."""
        expected = expect(self.read(self.topics["clickstream"]))
        table = {key: value for key, value in self.table().items() if key[1][:1] in CONTRACT_KEYS}
        wrong = [key for key in table.keys() | expected.table.keys() if table.get(key) != expected.table.get(key)]
        assert not wrong, (
            f"{len(wrong)} of {len(expected.table)} table rows differ from the fold of the log: {wrong[:3]}"
        )
        answers = collections.Counter(place_of(record) for record in self.read(self.topics["stage_probabilities"]))
        assert answers - expected.answered == {}, (
            f"repeated or unasked answers: {(answers - expected.answered).most_common(3)}"
        )
        assert expected.answered - answers == {}, f"unanswered: {(expected.answered - answers).most_common(3)}"
        for topic, places in (("dead_letters", expected.dead), ("late", expected.late)):
            rejected = [source_of(record) for record in self.read(self.topics[topic])]
            assert sorted(rejected) == sorted(places), f"{topic}: {len(rejected)} records, expected {len(places)}"
        triggers = collections.Counter(record.json()["id"] for record in self.read(self.topics["triggers"]))
        assert not [trigger for trigger, count in triggers.items() if count > 1], "a trigger fired twice"
        assert self.lag() == 0
        return expected


def wire(event: ClickEvent) -> bytes:
    """Our own JSON of an event."""
    fields = {name: getattr(event, name) for name in event.__struct_fields__}
    return json.dumps({name: value for name, value in fields.items() if value is not None}).encode()


def wait(ready: Callable[[], bool], seconds: float, tail: Callable[[], str], every: float = 0.1) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, f"not within {seconds} s:\n{tail()}"
        time.sleep(every)
