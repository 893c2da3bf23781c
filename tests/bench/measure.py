"""What the benchmarks share: progress on stderr, programs and their CPU, medians, and one JSON object at the end."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import psutil

from deploy.kafka.local_kafka import WATCHED

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "build" / "bench"
FIRST_SECONDS = 120.0  # a first answer takes at most this long, or the system cannot run
LOOK_SECONDS, STILL_SECONDS = 0.25, 3.0
DONE_SHARE = 0.98  # of the backlog; the rest may be answered by fewer partitions
TAIL_LINES = 12
PERCENTILES = ("p50", "p90", "p99", "max")

Figures = dict[str, Any]


class Unable(Exception):
    """Why a system cannot run; it is reported in place of its figures."""


def options(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser with what all benchmarks understand."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smoke test: everything small and once; no figures")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results (default build/bench)")
    return parser


def say(text: str) -> None:
    """Tell on stderr how far it is."""
    print(f"{datetime.now():%H:%M:%S} {text}", file=sys.stderr, flush=True)


def publish(name: str, args: argparse.Namespace, packages: Sequence[str], found: Figures) -> None:
    """Write the results to NAME.json and print them as the last line."""
    report = {
        "benchmark": name,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "quick": args.quick,
        "options": {key: value for key, value in vars(args).items() if key not in ("out", "quick")},
        "machine": machine(),
        "versions": {"python": platform.python_version(), **{package: version(package) for package in packages}},
        **found,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report), flush=True)


def machine() -> Figures:
    """Name the machine."""
    memory = psutil.virtual_memory().total
    return {
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "memory_gib": round(memory / (1 << 30)),
        "system": platform.platform(),
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().split("\n")
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


class Program:
    """A program in a group of its own, which ends with this script, however that ends; its output goes to a file."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path, folder: Path = ROOT) -> None:
        self.log = log
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                ("sh", "-c", WATCHED, "sh", *command), stdin=subprocess.PIPE, stdout=out, stderr=out,
                env=os.environ | environment, cwd=folder, start_new_session=True,
            )  # fmt: skip

    def __enter__(self) -> Program:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.end()

    @property
    def pid(self) -> int:
        return self._process.pid

    def alive(self) -> None:
        """Raise Unable, with the end of the log, where the program has ended."""
        if self._process.poll() is not None:
            raise Unable(f"it ended with code {self._process.returncode}: {self.tail()}")

    def tail(self) -> str:
        """Return the end of the log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-TAIL_LINES:])

    def cpu_seconds(self) -> float:
        return sum(map(cpu_seconds, tree(self.pid)))

    def rss_bytes(self) -> int:
        """Return the resident memory of the program and its children."""
        return sum(resident(process) for process in tree(self.pid))

    def stop(self, seconds: float = 30.0) -> None:
        """Ask the program to end, and wait."""
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        self.end()

    def end(self) -> None:
        """End the program and its children at once."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()


def tree(pid: int) -> list[psutil.Process]:
    """Return a process and all that it started."""
    try:
        top = psutil.Process(pid)
        return [top, *top.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def cpu_seconds(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


def resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


class Look(NamedTuple):
    """Counters at one moment; times in seconds."""

    at: float
    events: int
    system: float  # CPU of the program that is measured
    bench: float  # of this script and whatever else it started, the broker excepted
    broker: float
    busy: float  # of the whole machine
    stolen: float  # taken by other machines on the same host


@dataclass(frozen=True, slots=True)
class Watch:
    """Looks at a program, at the broker that this script started (if it did), and at the whole machine."""

    program: Program
    progress: Callable[[], int]
    brokers: frozenset[int] = frozenset()

    def step(self) -> Look:
        """Look just after progress was made: a transaction answers many events at once."""
        before, since = self.progress(), time.monotonic()
        while self.progress() == before and time.monotonic() - since < STILL_SECONDS:
            time.sleep(0.01)
        return self.look()

    def look(self) -> Look:
        events, at = self.progress(), time.monotonic()
        mine = {process.pid: cpu_seconds(process) for process in tree(os.getpid())}
        system = sum(mine.pop(process.pid, 0.0) for process in tree(self.program.pid))
        broker = sum(mine.pop(pid, 0.0) for pid in self.brokers)
        times = psutil.cpu_times()
        busy = times.user + times.system + times.nice + times.irq + times.softirq
        return Look(at, events, system, sum(mine.values()), broker, busy, times.steal)

    def first(self) -> None:
        """Wait for the first event."""
        waited = time.monotonic()
        while self.progress() == 0:
            self.program.alive()
            time.sleep(0.1)
            if time.monotonic() - waited > FIRST_SECONDS:
                raise Unable(f"it answered nothing within {FIRST_SECONDS:.0f} s: {self.program.tail()}")

    def window(self, warm_seconds: float, seconds: float, total: int) -> Figures:
        """Return the rate between the end of the warm-up and the end of the window or of the backlog."""
        self.first()
        time.sleep(warm_seconds)
        first = last = self.step()
        while time.monotonic() - first.at < seconds:
            time.sleep(LOOK_SECONDS)
            self.program.alive()
            now = self.step()
            if now.events > DONE_SHARE * total and last is not first:
                break
            last = now
        if last.events == first.events:
            raise Unable("the backlog ended inside the warm-up, or nothing moved; give --events more")
        return between(first, last) | {"rss_mb": round(self.program.rss_bytes() / 1e6)}


def between(first: Look, last: Look) -> Figures:
    """Return rate and CPU between two looks; shares are of one CPU."""
    wall, events, system, bench, broker, busy, stolen = (b - a for a, b in zip(first, last, strict=True))
    return {
        "events_per_second": round(events / wall),
        "cpu_us_per_event": round(system / max(1, events) * 1e6, 2),
        "cpu_share": round(system / wall, 2),
        "broker_cpu_share": round(broker / wall, 2),
        "bench_cpu_share": round(bench / wall, 2),
        "other_cpu_share": round(max(0.0, busy - system - bench - broker) / wall, 2),
        "stolen_cpu_share": round(stolen / wall, 2),
        "events": events,
        "seconds": round(wall, 1),
    }


def median_run(runs: Sequence[Figures], by: str = "events_per_second") -> Figures:
    """Return the run whose figure is the median one, with the spread of that figure and of the other programs' CPU."""
    values = sorted(run[by] for run in runs)
    median = min(runs, key=lambda run: abs(run[by] - statistics.median(values)))
    spread = {f"{by}_min_max": [values[0], values[-1]], "repeats": len(runs)}
    return {**median, **spread}


def percentiles(values: npt.ArrayLike) -> Figures:
    """Return p50, p90, p99 and the largest of some milliseconds."""
    found = np.percentile(values, [50, 90, 99, 100])
    return {f"{name}_ms": round(float(value), 1) for name, value in zip(PERCENTILES, found, strict=True)}
