"""Fitting: a log in, habits with a refiner out, and a report on how well a classifier still tells virtual from real.

Three in ten users of the log are kept aside: neither habits nor refiner see them, and only they stand for the real ones
in the report. The virtual users of the report are in neither's training either.
"""

import argparse
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from tqdm import tqdm

from model.contract.bundle import Bundle
from model.contract.errors import FunnelcastError
from model.contract.rows import Array, Rules
from model.datasets import Log, LogColumns, read_columns
from model.evaluation.splits import place
from model.examples import fingerprint
from model.histories import replay
from model.virtual.detector import fit_detector, judge, refiner_of
from model.virtual.habits import Habits, fit_habits
from model.virtual.journeys import TOGETHER, Generator, Journey
from model.virtual.refine import kept, path_of
from model.virtual.statistics import Path as Walked
from model.virtual.statistics import common_trigrams, statistics

HELD_SHARE = 0.3
FEWEST_USERS = 20  # kept aside
MOST_REAL = 5000  # users whose statistics are taken
REFINER_TREES = 300


def fit_and_judge(log: Log, bundle: Bundle, arguments: argparse.Namespace) -> dict[str, Any]:
    """Fit, refine and judge; write the habits and the report, and return the report."""
    columns = read_columns(log)
    print("\n".join([log.summary(), *log.problems.lines()]))
    seed, target = arguments.seed, arguments.habits
    held = np.array([place(user, seed, "virtual") < HELD_SHARE for user in columns.users])
    if min(held.sum(), (~held).sum()) < FEWEST_USERS:
        raise FunnelcastError(
            f"the log has {len(held)} users, of which {held.sum()} are kept aside, expected at least {FEWEST_USERS};"
            " use a larger log"
        )
    contract = bundle.contract
    histories = replay(columns, Rules(contract.gap_ms, contract.late_ms, contract.funnel.rules()), arguments.progress)
    source = {"name": log.path.name, "fingerprint": fingerprint(columns), "users": int((~held).sum())}
    habits = fit_habits(columns, histories, np.flatnonzero(~held), source)
    real, aside = (_walked(columns, np.flatnonzero(part)[:MOST_REAL]) for part in (~held, held))
    habits, report = refine(habits, bundle, real, aside, arguments)
    report = {"source": source, "held_users": int(held.sum()), "bundle": bundle.name, "seed": seed, **report}
    save(target, habits, report)
    for name in ("before", "after"):
        low, high = report[name]["interval"]
        print(f"{name:6} refinement: a classifier tells virtual from real users with AUC {report[name]['auc']:.3f}"
              f" ({low:.3f} to {high:.3f})")  # fmt: skip
    return report


def refine(
    habits: Habits, bundle: Bundle, real: list[Walked], aside: list[Walked], arguments: argparse.Namespace
) -> tuple[Habits, dict[str, Any]]:
    """Fit the refiner against the raw virtual users; judge raw and refined ones by classifiers of their own."""
    seed, count, first_ms = arguments.seed, arguments.judges, habits.start_ms
    trigrams = common_trigrams(real)

    def table(paths: Iterator[Walked] | list[Walked]) -> Array:
        return np.array([statistics(path, trigrams, first_ms) for path in paths])

    hide = None if arguments.progress is None else not arguments.progress
    with tqdm(total=4 * count, unit=" users", desc="virtual users", disable=hide) as bar:

        def some(journeys: Iterator[Journey]) -> Iterator[Walked]:
            for journey in islice(journeys, 2 * count):
                bar.update()
                yield path_of(journey)

        raw = Generator(bundle, habits, seed).walk(together=min(TOGETHER, count))
        seen, unseen, virtual = table(real), table(aside), table(some(raw))
        before = judge(fit_detector(seen, virtual[:count], seed), unseen, virtual[count:], seed)
        refiner = refiner_of(fit_detector(seen, virtual, seed + 1, REFINER_TREES), virtual, trigrams)
        tried = Counted(raw)
        refined = table(some(kept(tried, refiner, seed, first_ms)))
    after = judge(fit_detector(seen, refined[:count], seed), unseen, refined[count:], seed)
    told = {"before": before, "after": after, "kept": len(refined) / tried.count}
    return msgspec.structs.replace(habits, refiner=refiner), told


class Counted:
    """Counts what is taken from an iterator."""

    def __init__(self, journeys: Iterator[Journey]) -> None:
        self._journeys, self.count = journeys, 0

    def __iter__(self) -> "Counted":
        return self

    def __next__(self) -> Journey:
        self.count += 1
        return next(self._journeys)


def _walked(columns: LogColumns, users: Array) -> list[Walked]:
    """Return the journeys of real users."""
    order = np.lexsort((columns.ts, columns.user))
    starts = np.searchsorted(columns.user[order], np.arange(len(columns.users) + 1))
    parts = [order[starts[user] : starts[user + 1]] for user in users.tolist()]
    return [
        Walked(columns.type[at], columns.ts[at], columns.item[at].tolist(), columns.category[at].tolist())
        for at in parts
    ]


def save(target: Path, habits: Habits, report: dict[str, Any]) -> None:
    """Write habits and report side by side."""
    from model.checkpoint import write_whole

    try:
        write_whole(target, msgspec.json.encode(habits) + b"\n")
        path = target.with_name(f"{target.stem}-report.json")
        write_whole(path, msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
    except OSError as error:
        raise FunnelcastError(f"cannot write {target}: {error.strerror}; choose another --habits") from None
    print(f"habits  {target}  (report: {path.name})")
