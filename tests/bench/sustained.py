"""Live clicks at a steady rate, and the highest rate at which they do not pile up."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass

from tests.bench.measure import ROOT, Figures, Unable, Watch, between, say
from tests.bench.systems import Place, System

DRAIN_SECONDS = 180.0
PILE_SECONDS = 0.5  # clicks of so long may wait when a step of the search ends
LESS = 0.9  # of a rate that is not kept up with again


@dataclass(frozen=True, slots=True)
class Live:
    """A system that has drained its backlog and is ready for clicks."""

    system: System
    place: Place
    watch: Watch
    args: argparse.Namespace


def drained(live: Live, total: int, seconds: float) -> bool:
    """Wait until so many clicks are answered; tell whether they are."""
    deadline = time.monotonic() + seconds
    while live.watch.progress() < total:
        live.watch.program.alive()
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def paced(live: Live, rate: float, seconds: float, seed: int) -> tuple[Figures, Figures]:
    """Send clicks at a rate; return what the producer did, and the CPU meanwhile."""
    command = [sys.executable, "-m", "tests.bench.pace", "--broker", live.place.broker, "--topic", live.place.clicks]
    command += ["--users", str(live.args.users), "--rate", str(rate), "--seconds", str(seconds), "--seed", str(seed)]
    first = live.watch.look()
    ran = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    live.watch.program.alive()
    return json.loads(ran.stdout), between(first, live.watch.look())


def sustained(live: Live, backlog: float) -> tuple[Figures, int]:
    """Find the highest rate that it keeps up with, by bisection below that of a backlog; and how many were sent.

    It has to keep up with it a second time: a step may have met a fast moment of the machine. If not, a tenth less is
    tried.
    """
    total, steps = live.args.events, []

    def keeps_up(rate: float) -> bool:
        nonlocal total
        total += paced(live, rate, live.args.step_seconds, len(steps))[0]["sent"]
        waiting = total - live.watch.progress()
        is_kept = waiting <= PILE_SECONDS * rate
        steps.append({"events_per_second": round(rate), "waiting": waiting, "keeps_up": is_kept})
        say(f"{live.system.name}: {steps[-1]}")
        if not drained(live, total, DRAIN_SECONDS):
            raise Unable(f"{rate:,.0f} clicks/s were not caught up with within {DRAIN_SECONDS:.0f} s")
        return is_kept

    low, high = 0.0, backlog
    for _ in range(live.args.steps):
        rate = (low + high) / 2
        low, high = (rate, high) if keeps_up(rate) else (low, rate)
    rate = low or high / 2
    while not keeps_up(rate):
        rate *= LESS
    return {"events_per_second": round(rate), "steps": steps}, total
