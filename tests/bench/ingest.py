"""Events/s of one worker without a model, next to what people use today, on one real Kafka.

Every system drains the same backlog, in turn, several times. A figure counts the events whose source offset was
committed (ours) or whose answer was there (the others) inside the window after the warm-up, and the CPU of the system's
processes alone. Afterwards its answers are read back: an update that was lost or repeated shows in its counters. The
broker and this script share the machine's cores. Progress is on stderr, the last line of stdout is one JSON object.

    python -m tests.bench.ingest [--systems funnelcast,faust] [--repeats 3]     (about 7 minutes)
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from confluent_kafka import KafkaException

from deploy.kafka.local_kafka import LocalKafka
from tests.bench.measure import Figures, Unable, Watch, median_run, options, publish, say, tree
from tests.bench.systems import OURS, SYSTEMS, Place, System
from tests.bench.traffic import DAY_MS, Topics, clicks, fill, read_back

PACKAGES = ("faust-streaming", "aiokafka", "rocksdict", "numba", "numpy", "bytewax", "confluent-kafka")
START_MS = 1_700_000_000_000


def run(system: System, place: Place, args: argparse.Namespace, brokers: frozenset[int]) -> Figures:
    """Measure one system once."""
    topics = Topics(place.broker)
    try:
        with system.start(place, topics) as program:
            watch = Watch(program, system.progress(place, topics), brokers)
            found = watch.window(args.warm, args.seconds, args.events)
        return found | {"check": read_back(place.broker, place.answers, system.counter)}
    finally:
        topics.delete(place.tag)


def measured(
    args: argparse.Namespace, kafka: LocalKafka, folder: Path, brokers: frozenset[int]
) -> dict[str, list[Figures]]:
    """Return the runs of each system; a system that could not run has the reason instead, and is not tried again."""
    topic, runs = f"clicks-{os.getpid()}", {name: [] for name in args.systems}
    topics = Topics(kafka.bootstrap)
    topics.create(topic)
    say(f"producing {args.events:,} clicks")
    fill(kafka.bootstrap, topic, clicks(args.events, args.users, START_MS, 3 * DAY_MS))
    for repeat in range(args.repeats):
        for name in args.systems:
            if any("could_not_run" in one for one in runs[name]):
                continue
            place = Place(kafka.bootstrap, topic, f"{name.replace('_', '-')}-{os.getpid()}-{repeat}", folder)
            try:
                runs[name].append(run(SYSTEMS[name], place, args, brokers))
            except (Unable, KafkaException, OSError, subprocess.SubprocessError) as reason:
                runs[name] = [{"could_not_run": str(reason)}]
            say(f"{repeat + 1}/{args.repeats} {name}: {runs[name][-1]}")
    topics.delete(topic)
    return runs


def ratios(runs: dict[str, list[Figures]]) -> dict[str, float]:
    """Return how many times the rate of each other system ours has, by turns: medians of ratios of one moment."""
    rates = {name: [run["events_per_second"] for run in found] for name, found in runs.items() if "check" in found[0]}
    mine = rates.pop(OURS.name, [])
    return {
        name: round(statistics.median(a / b for a, b in zip(mine, theirs, strict=True)), 2)
        for name, theirs in rates.items()
        if mine
    }


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--events", type=int, default=2_000_000, help="size of the backlog (default 2,000,000)")
    parser.add_argument("--users", type=int, default=5_000, help="users in it (default 5,000)")
    parser.add_argument("--warm", type=float, default=5, help="seconds before a window (default 5)")
    parser.add_argument("--seconds", type=float, default=8, help="longest window of one measurement (default 8)")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each system, in turn (default 3)")
    parser.add_argument(
        "--systems", type=lambda text: text.split(","), default=list(SYSTEMS), metavar="A,B", help=",".join(SYSTEMS)
    )
    args = parser.parse_args()
    if unknown := set(args.systems) - set(SYSTEMS):
        parser.error(f"unknown systems {sorted(unknown)}, known are {list(SYSTEMS)}")
    if args.quick:
        args.events, args.warm, args.seconds, args.repeats = 300_000, 0.0, 1.0, 1
    started = time.monotonic()
    with LocalKafka() as kafka, tempfile.TemporaryDirectory(prefix="funnelcast-bench-") as folder:
        brokers = frozenset(process.pid for process in tree(os.getpid())[1:])
        runs = measured(args, kafka, Path(folder), brokers)
    systems = {
        name: {"title": SYSTEMS[name].title, "includes": SYSTEMS[name].includes}
        | (median_run(found) if "check" in found[0] else found[0])
        for name, found in runs.items()
    }
    minutes = round((time.monotonic() - started) / 60, 1)
    publish("ingest", args, PACKAGES, {"systems": systems, "ratios": ratios(runs), "minutes": minutes})


if __name__ == "__main__":
    main()
