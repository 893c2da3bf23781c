"""Reading, replaying and labelling a synthetic log by `funnelcast prepare`: seconds by stage, peak memory, disk.

The log is CSV as Taobao's, by event time: visits of eight events, a hundred events a user on average, most of them of
few users. A fresh process prepares each log, so that its memory is its own; two sizes show how cost grows with the log.
Progress is on stderr, the last line of stdout is one JSON object.

    python -m tests.bench.replay [--events 5000000,20000000]     (1 to 2 minutes per 20 million)
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import csv

from model.contract.rows import HOUR_MS
from model.contract.stages import load_funnel
from model.contract.vocabulary import Vocabulary
from model.datasets import LogOptions, read_log
from model.prepared import command
from model.prepared.folder import Purpose
from model.prepared.spill import Spill
from tests.bench.measure import ROOT, Figures, Unable, options, publish, say

PACKAGES = ("numpy", "numba", "pyarrow")
EVENTS_PER_USER, EVENTS_PER_VISIT, VISIT_SECONDS = 100, 8, 1200
FIRST_SECOND, SECONDS = 1_511_539_200, 9 * 86_400 - 1  # the days of the public log
KINDS, KIND_SHARES = ("pv", "cart", "fav", "buy"), (0.9, 0.05, 0.03, 0.02)
CATEGORIES, ITEMS_OF_CATEGORY = 5_000, 500
BLOCK = 500_000
LOOK_SECONDS = 0.5

_spent: dict[str, float] = {}


def write_log(path: Path, events: int) -> None:
    """Write the log."""
    draw, users = np.random.default_rng(7), max(1, events // EVENTS_PER_USER)
    with path.open("wb") as file:
        for first in range(0, events, BLOCK):
            size = min(BLOCK, events - first)
            visits = -(-size // EVENTS_PER_VISIT)
            user = (users * draw.random(visits) ** 2).astype(np.int64) + 100_000
            begin = FIRST_SECOND + (first + size * draw.random(visits)) / events * (SECONDS - VISIT_SECONDS)
            user, begin = (np.repeat(column, EVENTS_PER_VISIT)[:size] for column in (user, begin))
            second = (begin + VISIT_SECONDS * draw.random(size)).astype(np.int64)
            order = np.argsort(second, kind="stable")
            category = (CATEGORIES * draw.random(size) ** 2).astype(np.int64) + 1
            item = category * ITEMS_OF_CATEGORY + (ITEMS_OF_CATEGORY * draw.random(size) ** 2).astype(np.int64)
            kind = pa.DictionaryArray.from_arrays(draw.choice(len(KINDS), size, p=KIND_SHARES).astype(np.int32), KINDS)
            columns = [user[order], item, category, kind.cast("string"), second[order]]
            table = pa.table(columns, names=["user", "item", "category", "kind", "time"])
            csv.write_csv(table, file, csv.WriteOptions(include_header=False, quoting_style="none"))


def timed(stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Count the seconds of a function towards a stage."""

    def counted(*given: Any, **named: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*given, **named)
        finally:
            _spent[stage] = _spent.get(stage, 0.0) + time.perf_counter() - started

    return counted


def stepwise(stage: str, generator: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """Count the seconds that a generator takes for its items towards a stage."""

    def counted(*given: Any, **named: Any) -> Iterator[Any]:
        following = timed(stage, generator(*given, **named).__next__)
        while True:
            try:
                item = following()
            except StopIteration:
                return
            yield item

    return counted


def one(log: Path, out: Path) -> Figures:
    """Prepare a log in this process."""
    warm(out.with_name("warm"))
    stages: dict[str, Any] = {
        "Spill": timed("read", command.Spill),
        "recorded_stretches": timed("fingerprint", command.recorded_stretches),
        "digest_of": timed("fingerprint", command.digest_of),
        "replay_groups": stepwise("replay", command.replay_groups),
        "labelled": timed("label", command.labelled),
    }
    Spill.shards = stepwise("divide", Spill.shards)  # type: ignore[method-assign]
    for name, function in stages.items():
        setattr(command, name, function)
    out.mkdir()
    started, used = time.perf_counter(), time.process_time()
    about = prepare(log, out)
    seconds = time.perf_counter() - started
    written = {"write": seconds - sum(_spent.values())}
    return {
        "events": about.data["events"],
        "users": about.data["users"],
        "rows": about.data["rows"],
        "seconds": round(seconds, 1),
        "cpu_seconds": round(time.process_time() - used, 1),
        "events_per_second": round(about.data["events"] / seconds),
        "seconds_by_stage": {name: round(spent, 1) for name, spent in (_spent | written).items()},
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3),
        "log_mb": round(log.stat().st_size / 1e6),
        "prepared_mb": round(size(out) / 1e6),
    }


def prepare(log: Path, out: Path) -> command.Prepared:
    """Run the command's own work."""
    purpose = Purpose(load_funnel(None), 24 * HOUR_MS, Vocabulary())
    return command.prepare(read_log(log, "taobao", LogOptions(progress=False)), purpose, out, progress=False)


def warm(folder: Path) -> None:
    """Compile what is compiled, on a few events."""
    folder.mkdir()
    write_log(folder / "log.csv", 1000)
    (folder / "out").mkdir()
    prepare(folder / "log.csv", folder / "out")


def size(folder: Path) -> int:
    """Return the bytes of the files below a folder, some of which may go meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total


def measured(events: int) -> Figures:
    """Make a log and prepare it in a process of its own; look at the disk meanwhile."""
    with tempfile.TemporaryDirectory(prefix="funnelcast-replay-") as name:
        folder = Path(name)
        log = folder / "log.csv"
        write_log(log, events)
        say(f"{events:,} events written, {log.stat().st_size / 1e6:,.0f} MB")
        line = [sys.executable, "-m", "tests.bench.replay", "--one", str(log)]
        child, peak = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, text=True), 0
        while child.poll() is None:
            time.sleep(LOOK_SECONDS)
            peak = max(peak, size(folder / "out"))
        said = child.communicate()[0]
        if child.returncode:
            raise Unable(f"the process with {events:,} events ended with code {child.returncode}")
        return json.loads(said.splitlines()[-1]) | {"peak_disk_mb": round(peak / 1e6)}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--events", type=lambda text: [int(part) for part in text.split(",")], default=[1_000_000],
                        metavar="A,B", help="sizes of the log (default 1000000)")  # fmt: skip
    parser.add_argument("--one", type=Path, metavar="LOG", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one is not None:
        print(json.dumps(one(args.one, args.one.with_name("out"))))
        return
    if args.quick:
        args.events = [20_000]
    started, figures = time.monotonic(), []
    for events in args.events:
        figures.append(measured(events))
        say(f"{figures[-1]}")
    del args.one
    includes = "CSV to labelled examples on disk, one process"
    ours = {"title": "funnelcast prepare", "includes": includes, "figures": figures}
    minutes = round((time.monotonic() - started) / 60, 1)
    publish("replay", args, PACKAGES, {"systems": {"funnelcast": ours}, "minutes": minutes})


if __name__ == "__main__":
    main()
