"""Events/s of one worker without a model, next to stock Faust, on one real Kafka; the last line is one JSON object.

Ours: decode, fold with all features, RocksDB table with changelog, one answer per event, exactly-once transactions.
Stock: stock_faust.py. Each drains a backlog; a figure counts the events whose source offset was committed (ours) or
answered (stock) inside the window after the warm-up, and the CPU of the worker's process alone. The broker and this
script share the machine's cores.

    python tests/bench/ingest.py [--events 1000000] [--seconds 20] [--repeats 3]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaProducer
from kafka import KafkaConsumer, TopicPartition
from kafka.admin import KafkaAdminClient, NewTopic
from kafka.errors import KafkaError

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "deploy" / "kafka")]

from local_kafka import LocalKafka  # noqa: E402

from worker.settings import load_settings  # noqa: E402
from worker.topics import ensure_topics  # noqa: E402

PARTITIONS, USERS, WARM_SECONDS = 4, 5_000, 3.0
KINDS = ["product_view"] * 18 + ["cart_add", "wishlist_add"]


def clicks(count: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield synthetic clicks of `USERS` users over three days, in time order (seeded)."""
    chance, start = random.Random(7), 1_700_000_000_000
    for number in range(count):
        user = f"u{int(USERS * chance.random() ** 2)}"
        timestamp = start + number * 259_200_000 // count
        item, category = chance.randrange(100_000), chance.randrange(300)
        yield (
            user.encode(),
            (
                f'{{"user_id":"{user}","event":"{chance.choice(KINDS)}","timestamp":{timestamp},'
                f'"item_id":"i{item}","category":"c{category}","price":9.5}}'
            ).encode(),
        )


async def fill(broker: str, topic: str, count: int) -> None:
    """Produce the backlog in batches, each user to one partition."""
    producer = AIOKafkaProducer(bootstrap_servers=broker, max_batch_size=1 << 19)
    await producer.start()
    batches = [producer.create_batch() for _ in range(PARTITIONS)]
    for key, value in clicks(count):
        partition = int(key[1:]) % PARTITIONS
        if batches[partition].append(timestamp=None, key=key, value=value) is None:
            await producer.send_batch(batches[partition], topic, partition=partition)
            batches[partition] = producer.create_batch()
            batches[partition].append(timestamp=None, key=key, value=value)
    for partition, batch in enumerate(batches):
        await producer.send_batch(batch, topic, partition=partition)
    await producer.stop()


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def machine_cpu_seconds() -> float:
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return (sum(fields[:3]) + fields[5] + fields[6]) / os.sysconf("SC_CLK_TCK")


def measure(pid: int, progress: Callable[[], int], seconds: float, total: int) -> dict[str, float]:
    """Return rate and CPU between the end of the warm-up and the end of the window or of the backlog."""

    def look() -> tuple[float, int, float, float]:
        return time.monotonic(), progress(), cpu_seconds(pid), machine_cpu_seconds()

    waited = time.monotonic()
    while progress() == 0:
        time.sleep(0.05)
        if time.monotonic() - waited > 120:
            raise SystemExit("no progress within 120 s")
    time.sleep(WARM_SECONDS)
    first = last = look()
    while time.monotonic() - first[0] < seconds:
        time.sleep(0.5)
        now = look()
        if now[1] > 0.98 * total:
            break
        last = now
    if last is first:
        raise SystemExit("the backlog ended inside the warm-up: give --events more")
    wall, events, cpu, machine = (b - a for a, b in zip(first, last, strict=True))
    return {
        "events_per_second": round(events / wall),
        "cpu_us_per_event": round(cpu / events * 1e6, 2),
        "cpu_share": round(cpu / wall, 2),
        "other_cpu_share": round((machine - cpu) / wall, 2),  # the broker, this script, and whatever else runs
        "events": events,
        "seconds": round(wall, 1),
    }


def run(command: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as out:
        return subprocess.Popen(
            command, env=os.environ | environment, stdout=out, stderr=out, cwd=ROOT, start_new_session=True
        )


def ours(kafka: LocalKafka, topic: str, total: int, seconds: float, folder: Path, tag: str) -> dict[str, float]:
    names = {name: f"{tag}-{name}" for name in ("stage_probabilities", "triggers", "dead_letters", "late")}
    settings = load_settings(broker=kafka.bootstrap, app_id=tag, partitions=PARTITIONS, clickstream=topic, **names)
    ensure_topics(settings)
    environment = {f"FUNNELCAST_{name.upper()}": value for name, value in names.items()} | {
        "FUNNELCAST_BROKER": kafka.bootstrap,
        "FUNNELCAST_APP_ID": tag,
        "FUNNELCAST_CLICKSTREAM": topic,
        "FUNNELCAST_PARTITIONS": str(PARTITIONS),
        "FUNNELCAST_BUNDLE": "none",
        "FUNNELCAST_STATE_DIR": str(folder / tag),
        "FUNNELCAST_HTTP_PORT": "0",
    }
    admin = KafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    tps = [TopicPartition(topic, number) for number in range(PARTITIONS)]

    def committed() -> int:
        try:
            places = admin.list_group_offsets({tag: tps})[tag]
        except KafkaError:  # the group has no coordinator yet
            return 0
        return sum(max(0, place.offset) for place in places.values())

    return attended(
        run([sys.executable, "-m", "worker.cli", "worker"], environment, folder / f"{tag}.log"),
        kafka,
        committed,
        seconds,
        total,
    )


def stock_faust(kafka: LocalKafka, topic: str, total: int, seconds: float, folder: Path, tag: str) -> dict[str, float]:
    admin = KafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    compact = {"cleanup.policy": "compact"}
    admin.create_topics(
        [
            NewTopic(f"{tag}-out", PARTITIONS, 1),
            NewTopic(f"{tag}-state-changelog", PARTITIONS, 1, topic_configs=compact),
            NewTopic(f"{tag}-__assignor-__leader", 1, 1),
        ]
    )
    environment = {
        "BENCH_BROKER": kafka.bootstrap,
        "BENCH_APP": tag,
        "BENCH_IN": topic,
        "BENCH_OUT": f"{tag}-out",
        "BENCH_STATE": str(folder / tag),
    }
    consumer = KafkaConsumer(bootstrap_servers=kafka.bootstrap)
    tps = [TopicPartition(f"{tag}-out", number) for number in range(PARTITIONS)]

    def answered() -> int:
        return sum(consumer.end_offsets(tps).values())

    script = str(Path(__file__).with_name("stock_faust.py"))
    return attended(run([sys.executable, script], environment, folder / f"{tag}.log"), kafka, answered, seconds, total)


def attended(
    worker: subprocess.Popen[bytes], kafka: LocalKafka, progress: Callable[[], int], seconds: float, total: int
) -> dict[str, float]:
    try:
        return measure(worker.pid, progress, seconds, total)
    finally:
        worker.send_signal(signal.SIGKILL)
        worker.wait()


def summary(runs: list[dict[str, float]]) -> dict[str, Any]:
    """Return the median run by rate, with the spread of the rates."""
    rates = sorted(run["events_per_second"] for run in runs)
    median = min(runs, key=lambda run: abs(run["events_per_second"] - statistics.median(rates)))
    return {**median, "events_per_second_min_max": [rates[0], rates[-1]], "repeats": len(runs)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1_500_000, help="size of the backlog (default 1,500,000)")
    parser.add_argument("--seconds", type=float, default=15, help="longest window of one measurement (default 15)")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each system, in turn (default 3)")
    args = parser.parse_args()
    results: dict[str, list[dict[str, float]]] = {"ours": [], "stock_faust": []}
    with LocalKafka() as kafka, tempfile.TemporaryDirectory(prefix="funnelcast-bench-") as folder:
        topic = f"bench-{os.getpid()}"
        KafkaAdminClient(bootstrap_servers=kafka.bootstrap).create_topics([NewTopic(topic, PARTITIONS, 1)])
        asyncio.run(fill(kafka.bootstrap, topic, args.events))
        for repeat in range(args.repeats):
            for name, system in (("ours", ours), ("stock_faust", stock_faust)):
                tag = f"{name.replace('_', '-')}-{os.getpid()}-{repeat}"
                results[name].append(system(kafka, topic, args.events, args.seconds, Path(folder), tag))
                print(name, json.dumps(results[name][-1]), flush=True)
    report = {name: summary(runs) for name, runs in results.items()}
    ratios = [a["events_per_second"] / b["events_per_second"] for a, b in zip(*results.values(), strict=True)]
    report["ratio"] = round(statistics.median(ratios), 1)
    packages = ("faust-streaming", "aiokafka", "rocksdict", "numba", "numpy")
    report["machine"] = {
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
