"""The demonstration: real clicks through Apache Kafka, a worker and the shipped network, live in the terminal.

    python deploy/demo/demo.py [--rate EVENTS_PER_SECOND] [--keep]

Ends with a summary, and with 0 when every click was answered; everything that it starts, it ends.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from kafka import KafkaConsumer, TopicPartition
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE.parent / "kafka"), str(ROOT)]

from local_kafka import LocalKafka, LocalKafkaError  # noqa: E402

from model.contract.stages import STAGES  # noqa: E402
from worker import watch  # noqa: E402
from worker.settings import Settings, load_settings  # noqa: E402
from worker.topics import ensure_topics  # noqa: E402

CLICKS = HERE / "clicks.csv.gz"
SUPPRESSED = "funnelcast_triggers_suppressed_total"
READY_SECONDS, QUIET_SECONDS = 120, 60
BARS = 40


@dataclass
class Seen:
    """What the committed topics have shown so far."""

    answers: int = 0
    events: int = 0
    stages: dict[str, str] = field(default_factory=dict)  # user -> current stage
    triggers: collections.Counter[str] = field(default_factory=collections.Counter)
    latest: collections.deque[dict[str, Any]] = field(default_factory=lambda: collections.deque(maxlen=6))
    latest_triggers: collections.deque[dict[str, Any]] = field(default_factory=lambda: collections.deque(maxlen=4))
    latencies_ms: list[int] = field(default_factory=list)
    first: float = 0.0
    last: float = 0.0

    def answer(self, value: dict[str, Any], now_ms: int) -> None:
        """Count one stage-probability record."""
        self.answers += 1
        self.last = time.monotonic()
        self.first = self.first or self.last
        self.stages[value["user_id"]] = value["stage"]
        self.latest.append(value)
        if value["arrival_time"] is not None:
            self.events += 1
            self.latencies_ms.append(max(0, now_ms - value["arrival_time"]))

    def trigger(self, value: dict[str, Any]) -> None:
        """Count one trigger record."""
        self.triggers[value["campaign"]] += 1
        self.latest_triggers.append(value)

    def percentile(self, share: float) -> float:
        """Return a percentile of the end-to-end latency, in ms."""
        return float(np.percentile(self.latencies_ms, share)) if self.latencies_ms else 0.0


def follow(settings: Settings, seen: Seen, stop: threading.Event) -> None:
    """Read answers and triggers, committed ones only, until told to stop."""
    consumer = KafkaConsumer(
        bootstrap_servers=settings.broker, isolation_level="read_committed", enable_auto_commit=False
    )
    topics = (settings.stage_probabilities, settings.triggers)
    consumer.assign([TopicPartition(topic, number) for topic in topics for number in range(settings.partitions)])
    consumer.seek_to_beginning()
    while not stop.is_set():
        for tp, records in consumer.poll(200, max_records=5000).items():
            now_ms = int(time.time() * 1000)
            for record in records:
                value = json.loads(record.value)
                if tp.topic == settings.triggers:
                    seen.trigger(value)
                else:
                    seen.answer(value, now_ms)
    consumer.close()


def view(console: Console, seen: Seen, total: int) -> Group:
    """Draw the live view."""
    rate = seen.events / max(0.5, time.monotonic() - seen.first) if seen.first else 0.0
    head = Text.assemble(
        (f" {seen.events:,} of {total:,} clicks answered ", "bold"),
        f"  {rate:,.0f}/s   {len(seen.stages)} users   ",
        f"p50 {seen.percentile(50):.0f} ms   p99 {seen.percentile(99):.0f} ms   ",
        (f"{sum(seen.triggers.values()):,} triggers", "bold magenta"),
    )
    wide = console.width >= watch.WIDE
    lines = [watch.line(record, wide=wide) for record in [*seen.latest, *seen.latest_triggers]]
    return Group(head, Text(), _stages(seen), Text(), watch.header(wide), *lines)


def _stages(seen: Seen) -> Table:
    counts = collections.Counter(seen.stages.values())
    table = Table(box=None, show_header=False, padding=(0, 1))
    for stage in STAGES:
        share = counts[stage] / max(1, len(seen.stages))
        table.add_row(stage.value, f"{counts[stage]:3d} users", Text("█" * round(BARS * share), style="cyan"))
    return table


@contextlib.contextmanager
def worker(settings: Settings, log: Path) -> Iterator[str]:
    """Run one worker, ready; yield its HTTP address; it drains at the end and must exit with 0."""
    environment = {
        f"FUNNELCAST_{name.upper()}": str(getattr(settings, name))
        for name in ("broker", "app_id", "partitions", "state_dir")
    }
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "worker.cli", "worker", "--http-port", str(settings.http_port)],
            cwd=ROOT, env=os.environ | environment, stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
    address = f"http://127.0.0.1:{settings.http_port}"
    try:
        _wait_ready(process, address, log)
        yield address
        process.send_signal(signal.SIGTERM)
        if process.wait(60) != 0:
            raise SystemExit(f"the worker ended with {process.returncode}:\n{_tail(log)}")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _wait_ready(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    end = time.monotonic() + READY_SECONDS
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/ready", timeout=2):
            return
        time.sleep(0.2)
    raise SystemExit(f"the worker did not get ready:\n{_tail(log)}")


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-20:])


def suppressed(address: str) -> dict[str, int]:
    """Read from the worker's metrics how many triggers were withheld, by reason."""
    counts: collections.Counter[str] = collections.Counter()
    with urllib.request.urlopen(f"{address}/metrics", timeout=5) as page:
        for line in page.read().decode().splitlines():
            if line.startswith(SUPPRESSED):
                counts[line.partition('reason="')[2].partition('"')[0]] += int(float(line.rpartition(" ")[2]))
    return {reason: count for reason, count in counts.most_common() if count}


def summary(console: Console, seen: Seen, withheld: dict[str, int]) -> None:
    """Print what happened."""
    table = Table(title="What happened", title_justify="left", show_header=False)
    table.add_row("clicks answered", f"{seen.events:,}, each exactly once")
    table.add_row("session ends answered", f"{seen.answers - seen.events:,}")
    table.add_row("users", f"{len(seen.stages):,}")
    counts = collections.Counter(seen.stages.values())
    table.add_row("users by stage", ", ".join(f"{stage} {counts[stage]}" for stage in STAGES))
    table.add_row("triggers", _listed(dict(seen.triggers.most_common())))
    table.add_row("suppressed, by reason", _listed(withheld))
    table.add_row("clicks per second", f"{seen.events / max(1e-9, seen.last - seen.first):,.0f}")
    latency = f"p50 {seen.percentile(50):.0f} ms, p99 {seen.percentile(99):.0f} ms"
    table.add_row("end-to-end latency", f"{latency} (arrival in Kafka to a read_committed consumer)")
    console.print(table)


def _listed(counts: dict[str, int]) -> str:
    return f"{sum(counts.values()):,}" + (
        f" ({', '.join(f'{name} {count:,}' for name, count in counts.items())})" if counts else ""
    )


def replay(settings: Settings, rate: float) -> subprocess.Popen[bytes]:
    """Start the producer of the clicks."""
    command = [sys.executable, "-m", "worker.cli", "replay", str(CLICKS), "--format", "taobao", "--rate", str(rate)]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"FUNNELCAST_BROKER": settings.broker},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


def play(console: Console, settings: Settings, rate: float, total: int, address: str) -> Seen:
    """Replay the clicks and draw until all are answered."""
    seen, stop = Seen(), threading.Event()
    reader = threading.Thread(target=follow, args=(settings, seen, stop), daemon=True)
    reader.start()
    producer = replay(settings, rate)
    try:
        with Live(view(console, seen, total), console=console, refresh_per_second=4) as live:
            moved, before = time.monotonic(), 0
            while seen.events < total and time.monotonic() - moved < QUIET_SECONDS:
                time.sleep(0.25)
                live.update(view(console, seen, total))
                if seen.events > before:
                    moved, before = time.monotonic(), seen.events
            time.sleep(1.5)  # session ends that are due, and their triggers
            live.update(view(console, seen, total))
    finally:
        if producer.poll() is None:
            producer.terminate()
        producer.wait()
        stop.set()
        reader.join(5)
    if seen.events != total:
        raise SystemExit(f"{seen.events:,} of {total:,} clicks were answered, nothing came for {QUIET_SECONDS} s")
    return seen


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=250, help="clicks per second (default 250)")
    parser.add_argument("--keep", action="store_true", help="leave broker and worker running until Ctrl-C")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends what was started, as Ctrl-C does
    console = Console()
    with gzip.open(CLICKS) as lines:
        total = sum(1 for _ in lines)
    try:
        with LocalKafka() as kafka, tempfile.TemporaryDirectory(prefix="funnelcast-demo-") as folder:
            console.print(f"Apache Kafka answers at {kafka.bootstrap}")
            settings = load_settings(broker=kafka.bootstrap, state_dir=Path(folder) / "state", http_port=_free_port())
            ensure_topics(settings)
            with worker(settings, Path(folder) / "worker.log") as address:
                console.print(
                    f"worker ready; console {address}/, metrics {address}/metrics; "
                    f"replaying {total:,} clicks of real users at {args.rate:,.0f}/s"
                )
                seen = play(console, settings, args.rate, total, address)
                console.print()
                summary(console, seen, suppressed(address))
                if args.keep:
                    console.print(f"left running: Kafka {kafka.bootstrap}, console {address}/; Ctrl-C ends both")
                    with contextlib.suppress(KeyboardInterrupt):
                        signal.pause()
    except LocalKafkaError as error:
        raise SystemExit(f"funnelcast: {error}") from None
    except KeyboardInterrupt:
        return 130
    return 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
