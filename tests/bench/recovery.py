"""How fast a worker that lost its state directory has its table again: rows/s from the changelog, until it is ready.

A backlog makes the table; then the worker is started again with its state directory as it was left, which costs what
any start costs, and with an empty one. A row is a changelog record: a user's head or a page of the sequence; keys say
how many of them the table holds in the end. The worker's log says how long it read; without a model, since hot states
are no part of the recovery.
Progress is on stderr, the last line of stdout is one JSON object.

    python -m tests.bench.recovery [--users 100000] [--repeats 3]     (about 2 minutes)
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from deploy.kafka.local_kafka import LocalKafka
from tests.bench.measure import Figures, Unable, Watch, median_run, options, publish, say
from tests.bench.systems import OURS, Place, url
from tests.bench.traffic import DAY_MS, PARTITIONS, Topics, clicks, fill, records

PACKAGES = ("faust-streaming", "aiokafka", "rocksdict", "numba", "numpy")
START_MS = 1_700_000_000_000
READY_SECONDS, DRAIN_SECONDS = 300.0, 300.0


def make_table(place: Place, topics: Topics, events: int) -> None:
    """Let a worker drain the backlog."""
    with OURS.start(place, topics) as program:
        watch = Watch(program, OURS.progress(place, topics))
        deadline = time.monotonic() + DRAIN_SECONDS
        while watch.progress() < events:
            program.alive()
            time.sleep(0.2)
            if time.monotonic() > deadline:
                raise Unable(f"the backlog was not drained within {DRAIN_SECONDS:.0f} s")
        program.stop()


def seconds_to_ready(place: Place, topics: Topics) -> Figures:
    """Start the worker and wait until it is ready."""
    started = time.monotonic()
    with OURS.start(place, topics) as program:
        ready = url(program) + "ready"
        while not answers(ready):  # asking costs the worker a little CPU too
            program.alive()
            time.sleep(0.1)
            if time.monotonic() - started > READY_SECONDS:
                raise Unable(f"the worker was not ready within {READY_SECONDS:.0f} s")
        seconds, cpu, rss = time.monotonic() - started, program.cpu_seconds(), program.rss_bytes()
        program.stop()
    found = re.findall(r"(\d+) rows read from the changelog in ([\d.]+) s", program.log.read_text(errors="replace"))
    rows, reading = int(found[-1][0]), float(found[-1][1])
    return {
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu, 2),
        "rss_mb": round(rss / 1e6),
        "rows": rows,
        "reading": reading,
    }


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=10):
            return True
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def rebuilt(place: Place, topics: Topics, rows: int) -> Figures:
    """Measure one start with the state and one without it."""
    kept = seconds_to_ready(place, topics)
    shutil.rmtree(place.state)
    wiped = seconds_to_ready(place, topics)
    if wiped["rows"] < rows:
        raise Unable(f"the worker read {wiped['rows']:,} rows of the changelog, expected {rows:,}")
    return {
        "rows_per_second": round(wiped["rows"] / wiped["reading"]),
        "rows_per_second_start_included": round(rows / wiped["seconds"]),
        "cpu_us_per_row": round((wiped["cpu_seconds"] - kept["cpu_seconds"]) / rows * 1e6, 2),
        "ready_seconds_state_kept": kept["seconds"],
        "ready_seconds_state_wiped": wiped["seconds"],
        "rss_mb": wiped["rss_mb"],
    }


def measured(args: argparse.Namespace, broker: str, folder: Path) -> Figures:
    place = Place(broker, f"clicks-{os.getpid()}", f"recovery-{os.getpid()}", folder)
    topics = Topics(broker)
    topics.create(place.clicks)
    events = args.users * args.events_per_user
    say(f"producing {events:,} clicks of {args.users:,} users")
    fill(broker, place.clicks, clicks(events, args.users, START_MS, DAY_MS, even=True))
    make_table(place, topics, events)
    (changelog,) = topics.names(f"{place.tag}-user-sequences")
    keys, rows, size = set(), 0, 0
    for key, value in records(broker, [changelog], 1 << 40):
        keys.add(key)
        rows += 1
        size += len(key) + len(value)
    say(f"the changelog has {rows:,} rows, {size / 1e6:.0f} MB; the table {len(keys):,} keys")
    runs = []
    for repeat in range(args.repeats):
        runs.append(rebuilt(place, topics, rows))
        say(f"{repeat + 1}/{args.repeats} {runs[-1]}")
    table = {"users": args.users, "rows": rows, "keys": len(keys), "mb": round(size / 1e6), "partitions": PARTITIONS}
    found = median_run(runs, "rows_per_second")
    return {"table": table, **found}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--users", type=int, default=100_000, help="users in the table (default 100,000)")
    parser.add_argument("--events-per-user", type=int, default=10, help="clicks of each (default 10)")
    parser.add_argument("--repeats", type=int, default=2, help="rebuilds (default 2)")
    args = parser.parse_args()
    if args.quick:
        args.users, args.repeats = 5_000, 1
    started = time.monotonic()
    includes = "changelog read back into RocksDB, state directory wiped, until /ready; no model"
    found: Figures = {"title": "Funnelcast", "includes": includes}
    with LocalKafka() as kafka, tempfile.TemporaryDirectory(prefix="funnelcast-bench-") as folder:
        try:
            found |= measured(args, kafka.bootstrap, Path(folder))
        except Unable as reason:
            found["could_not_run"] = str(reason)
    minutes = round((time.monotonic() - started) / 60, 1)
    publish("recovery", args, PACKAGES, {"systems": {"funnelcast": found}, "minutes": minutes})


if __name__ == "__main__":
    main()
