"""From the producer's time of a click to a consumer that has its answer, under load; with the shipped model.

First a backlog is drained with the model on. Then clicks come live to the same worker, and the sustained rate is the
highest at which they do not pile up, twice (sustainable throughput: Karimov et al., Benchmarking Distributed Stream
Data Processing Systems, ICDE 2018). At 10 to 100 % of it a read_committed reader notes when it sees each answer; a
read_uncommitted reader beside it shows how far ahead it is. Kafka Streams, and our worker without a model, get the same
load with no model. Every load comes in each of the rounds: the figures are those of the round of the median p50, with
the spread of all. Producer and readers are processes of their own on the same cores, in the search too; times are of
one clock, to the millisecond. Progress is on stderr, the last line of stdout is one JSON object.

    python -m tests.bench.latency [--loads 10,50,100] [--rounds 3]     (about 13 minutes)
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from deploy.kafka.local_kafka import LocalKafka
from tests.bench.measure import (
    Figures,
    Program,
    Unable,
    Watch,
    median_run,
    options,
    percentiles,
    publish,
    say,
    tree,
)
from tests.bench.sustained import DRAIN_SECONDS, Live, drained, paced, sustained
from tests.bench.systems import KAFKA_STREAMS, KAFKA_STREAMS_EXACTLY_ONCE, OURS, Place, System, metrics, ours_with_model
from tests.bench.traffic import DAY_MS, Topics, clicks, fill

PACKAGES = ("faust-streaming", "aiokafka", "onnxruntime", "numba", "numpy", "confluent-kafka")
CATCH_UP_SECONDS = 20.0
MODEL = replace(
    OURS, name="funnelcast_model", title="Funnelcast, shipped model", start=ours_with_model,
    includes=OURS.includes + "; the shipped bundle from hot state, campaigns, default settings",
)  # fmt: skip
SYSTEMS = {system.name: system for system in (MODEL, OURS, KAFKA_STREAMS, KAFKA_STREAMS_EXACTLY_ONCE)}
ISOLATIONS = ("read_committed", "read_uncommitted")


class Seen(NamedTuple):
    """What a reader noted; ascending by place."""

    place: Any
    arrival: Any  # ms
    seen: Any  # ms


class Phase(NamedTuple):
    """One load: what the producer did, and the CPU meanwhile."""

    load: int  # percent
    sent: Figures
    used: Figures


def phases(live: Live, rate: float, total: int) -> list[Phase]:
    """Send clicks at each load in turn, and let the system catch up in between, if it can."""
    done, loads = [], list(live.args.loads)
    for _ in range(live.args.rounds):
        for place, load in enumerate(loads):
            done.append(Phase(load, *paced(live, rate * load / 100, live.args.settle + live.args.seconds, load)))
            say(f"{live.system.name} at {load} %: {done[-1].sent}")
            total += done[-1].sent["sent"]
            if not drained(live, total, CATCH_UP_SECONDS):
                say(f"{live.system.name} did not catch up within {CATCH_UP_SECONDS:.0f} s: no higher load")
                loads = loads[: place + 1]
                drained(live, total, DRAIN_SECONDS)
                break
            time.sleep(live.args.rest)
    return done


def readers(live: Live, folder: Path, stack: ExitStack) -> dict[str, Program]:
    """Start a reader of each kind and wait until they are at the end of the topic."""
    field, started = "arrival_time" if live.system.groups else "event_time", {}
    for isolation in ISOLATIONS:
        out = folder / f"{live.place.tag}-{isolation}.npz"
        command = [sys.executable, "-m", "tests.bench.reader", "--broker", live.place.broker]
        command += ["--topic", live.place.answers, "--isolation", isolation, "--field", field, "--out", str(out)]
        started[isolation] = stack.enter_context(Program(command, {}, out.with_suffix(".log")))
        while not out.with_suffix(".ready").exists():
            started[isolation].alive()
            time.sleep(0.05)
    return started


def noted(live: Live, folder: Path, isolation: str) -> Seen:
    with np.load(folder / f"{live.place.tag}-{isolation}.npz") as found:
        order = np.argsort(found["place"])
        return Seen(*(found[name][order] for name in Seen._fields))


def figures(phase: Phase, committed: Seen, uncommitted: Seen, settle: float) -> Figures:
    """Return the latencies of the clicks that came after the load had settled."""
    first, last = (phase.sent["from"] + settle) * 1000, phase.sent["to"] * 1000
    asked = (committed.arrival >= first) & (committed.arrival < last)
    if not asked.any():
        raise Unable(f"at {phase.load} % of the load no answer was seen")
    answered = (committed.arrival >= int(phase.sent["from"] * 1000)) & (committed.arrival <= last)
    waits = committed.seen[asked] - committed.arrival[asked]
    _, one, other = np.intersect1d(committed.place[asked], uncommitted.place, assume_unique=True, return_indices=True)
    ahead = committed.seen[asked][one] - uncommitted.seen[other]
    seconds = (last - first) / 1000
    return {
        "load_percent": phase.load,
        "events_per_second": round(phase.sent["sent"] / (phase.sent["to"] - phase.sent["from"])),
        "answers_per_second": round(float(asked.sum()) / seconds),
        **percentiles(waits),
        "uncommitted": percentiles(uncommitted.seen[other] - uncommitted.arrival[other]),
        "uncommitted_ahead": percentiles(ahead),
        "unanswered": phase.sent["sent"] - int(answered.sum()),
        "waiting_at_end": int((committed.seen[asked] > last + 100).sum()),
        "producer_late_ms": phase.sent["late_ms"],
        "used": phase.used,
    }


def by_load(measured: Sequence[Figures]) -> Iterator[list[Figures]]:
    """Yield the rounds of each load, the lowest first."""
    for load in sorted({one["load_percent"] for one in measured}):
        yield [one for one in measured if one["load_percent"] == load]


def serve(system: System, place: Place, rate: float | None, args: argparse.Namespace) -> Figures:
    """Drain a backlog, then measure each load, in percent of `rate`, else of the sustained rate that is found here."""
    topics = Topics(place.broker)
    topics.create(place.clicks)
    now_ms = int(time.time() * 1000)
    fill(place.broker, place.clicks, clicks(args.events, args.users, now_ms - DAY_MS, DAY_MS))
    brokers, found = frozenset(process.pid for process in tree(os.getpid())[1:]), {}
    try:
        with system.start(place, topics) as program, ExitStack() as stack:
            live = Live(system, place, Watch(program, system.progress(place, topics), brokers), args)
            if rate is None:
                found["drained"] = live.watch.window(args.warm, args.drain_seconds, args.events)
            if not drained(live, args.events, DRAIN_SECONDS):
                raise Unable(f"the backlog was not drained within {DRAIN_SECONDS:.0f} s")
            if system is MODEL:
                found["hot_state_hit_share"] = hot_share(program)
            say(f"{system.name} drained its backlog: {found}")
            started, total = readers(live, place.folder, stack), args.events
            if rate is None:
                found["sustained"], total = sustained(live, found["drained"]["events_per_second"])
                rate = found["sustained"]["events_per_second"]
            done = phases(live, rate, total)
            for reader in started.values():
                reader.stop()
            found["rss_mb"] = round(program.rss_bytes() / 1e6)
        seen = [noted(live, place.folder, isolation) for isolation in ISOLATIONS]
        measured = [figures(phase, *seen, args.settle) for phase in done]
        return found | {"loads": [median_run(runs, "p50_ms") for runs in by_load(measured)]}
    finally:
        topics.delete(place.tag)


def crowd(place: Place, args: argparse.Namespace) -> Figures:
    """Measure how fast a backlog is drained where there are more users than the pool has room for."""
    topics = Topics(place.broker)
    topics.create(place.clicks)
    now_ms = int(time.time() * 1000)
    fill(place.broker, place.clicks, clicks(args.events, args.crowd, now_ms - DAY_MS, DAY_MS))
    try:
        with MODEL.start(place, topics) as program:
            watch = Watch(program, MODEL.progress(place, topics))
            found = watch.window(args.warm, args.drain_seconds, args.events)
            return {"users": args.crowd, **found, "hot_state_hit_share": hot_share(program)}
    finally:
        topics.delete(place.tag)


def hot_share(program: Program) -> float:
    """Return the share of users of a block whose hot state was there."""
    found = metrics(program)
    hits, misses = (found[f"funnelcast_hot_state_{name}_total"] for name in ("hits", "misses"))
    return round(hits / (hits + misses), 4)


def measured(args: argparse.Namespace, broker: str, folder: Path) -> Figures:
    """Measure all systems at the loads that the first one found."""
    systems: dict[str, Figures] = {}
    rate = args.rate
    for name in args.systems:
        system, tag = SYSTEMS[name], f"{name.replace('_', '-')}-{os.getpid()}"
        systems[name] = {"title": system.title, "includes": system.includes}
        try:
            systems[name] |= serve(system, Place(broker, f"{tag}-clicks", tag, folder), rate, args)
            rate = systems[name]["sustained"]["events_per_second"] if rate is None else rate
            if system is MODEL and args.crowd:
                tag = f"crowd-{os.getpid()}"
                systems[name]["crowd"] = crowd(Place(broker, f"{tag}-clicks", tag, folder), args)
                say(f"with {args.crowd:,} users: {systems[name]['crowd']}")
        except Unable as reason:
            systems[name]["could_not_run"] = str(reason)
            say(f"{name} could not run: {reason}")
    return {"systems": systems, "sustained_events_per_second": rate}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--events", type=int, default=500_000, help="size of the backlog (default 500,000)")
    parser.add_argument("--users", type=int, default=2_000, help="users; the default pool keeps 2,048 (default 2,000)")
    parser.add_argument("--crowd", type=int, default=8_000, help="users of one more drain; 0: none (default 8,000)")
    parser.add_argument("--rate", type=float, help="the sustained rate, if not to be measured")
    parser.add_argument("--loads", type=lambda text: [int(part) for part in text.split(",")],
                        default=[10, 25, 50, 75, 100], metavar="A", help="percent (10,25,50,75,100)")  # fmt: skip
    parser.add_argument("--warm", type=float, default=4, help="seconds before the window of the drain (default 4)")
    parser.add_argument("--drain-seconds", type=float, default=12, help="longest window of the drain (default 12)")
    parser.add_argument("--steps", type=int, default=4, help="of the search for the sustained rate (default 4)")
    parser.add_argument("--step-seconds", type=float, default=12, help="seconds of a step (default 12)")
    parser.add_argument("--rounds", type=int, default=3, help="in which every load comes (default 3)")
    parser.add_argument("--settle", type=float, default=2, help="seconds of a load that are not counted (default 2)")
    parser.add_argument("--seconds", type=float, default=5, help="seconds of a load that are (default 5)")
    parser.add_argument("--rest", type=float, default=1.5, help="seconds between two loads (default 1.5)")
    parser.add_argument("--systems", type=lambda text: text.split(","), default=list(SYSTEMS), metavar="A,B",
                        help=f"the first one sets the loads; of {','.join(SYSTEMS)}")  # fmt: skip
    args = parser.parse_args()
    if unknown := set(args.systems) - set(SYSTEMS):
        parser.error(f"unknown systems {sorted(unknown)}, known are {list(SYSTEMS)}")
    if args.quick:
        args.events, args.users, args.crowd, args.loads = 200_000, 500, 0, [10, 50]
        args.warm, args.drain_seconds, args.settle, args.seconds = 0.0, 1.0, 0.5, 1.0
        args.steps, args.step_seconds, args.rounds = 1, 1.0, 1
    started = time.monotonic()
    with LocalKafka() as kafka, tempfile.TemporaryDirectory(prefix="funnelcast-bench-") as folder:
        found = measured(args, kafka.bootstrap, Path(folder))
    publish("latency", args, PACKAGES, found | {"minutes": round((time.monotonic() - started) / 60, 1)})


if __name__ == "__main__":
    main()
