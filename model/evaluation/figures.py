"""Figures: probabilities of positions never seen in training in, how good they are out, with user-bootstrap intervals.

A bootstrap replicate draws users with replacement; every contender is measured on the same replicates, so differences
are paired.
"""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from model.contract.bundle import SCOPES
from model.contract.events import SESSION_END
from model.contract.rows import DAY_MS, Array
from model.contract.stages import STAGES
from model.examples import Examples
from model.measures import calibration_error, log_loss

TOP_SHARES = (0.01, 0.05, 0.1)  # of the positions, for precision@K and lift
INTERVAL = (2.5, 97.5)
BOOTSTRAPPED = ("auc", "pr_auc", "log_loss", "brier")
ROWS = "rows "  # begins the names of slices by length
LENGTHS = (10, 50, 128, 512, 1024)  # rows of the sequence so far, for slices


class Positions(NamedTuple):
    """What was asked: one row per position, in the same order for every contender."""

    outcomes: Array  # (P, 2, S) i1
    user: Array  # (P,) i4
    session_end: Array  # (P,) bool
    length: Array  # (P,) i4 rows of the user so far
    activity: Array  # (P,) i4 rows of the user in all
    first_day: Array  # (P,) bool


class Answers(NamedTuple):
    """What a contender said."""

    before: Array  # (P, 2, S) f4 probabilities without calibration
    after: Array  # (P, 2, S) f4 with it


class Ranked(NamedTuple):
    """A column of probabilities prepared for many weightings: positions in descending order, ties together."""

    place: Array  # (P,) index of the position's distinct probability, the highest first
    distinct: int
    outcomes: Array  # (P,) f8


def positions_of(examples: Examples, rows: Array) -> Positions:
    """Describe rows (P,) of the examples."""
    user, start = examples.user_of(rows), examples.start
    return Positions(
        examples.reach[rows],
        user.astype(np.int32),
        np.asarray(examples.type[rows] == SESSION_END),
        (rows - start[user] + 1).astype(np.int32),
        np.diff(start)[user].astype(np.int32),
        np.asarray(examples.ts[rows] < examples.ts[start[user]] + DAY_MS),
    )


def figures_of(positions: Positions, answers: Answers, draws: Array) -> dict[str, Any]:
    """Return all figures by scope and stage; `draws` (R, U) say how often each replicate has each user."""
    return {
        scope: {
            str(stage): _cell(positions, answers.before[:, a, s], answers.after[:, a, s], draws, (a, s))
            for s, stage in enumerate(STAGES)
        }
        for a, scope in enumerate(SCOPES)
    }


def _cell(positions: Positions, before: Array, after: Array, draws: Array, at: tuple[int, int]) -> dict[str, Any]:
    y = positions.outcomes[:, at[0], at[1]].astype(np.float64)
    p = after.astype(np.float64)
    order, rate = np.argsort(-p, kind="stable"), float(y.mean())
    top = {f"{share:g}": float(y[order[: max(1, int(share * len(y)))]].mean()) for share in TOP_SHARES}
    ranked = rank(p, y)
    even = np.ones(len(y))
    cell: dict[str, Any] = {
        "auc": area(ranked, even),
        "pr_auc": precision_area(ranked, even),
        "log_loss": float(log_loss(p, y)),
        "brier": float(((p - y) ** 2).mean()),
        "ece": calibration_error(p, y),
        "ece_before": calibration_error(before.astype(np.float64), y),
        "rate": rate,
        "users_reaching": len(np.unique(positions.user[y > 0])),
        "positions": len(y),
        "precision_at": top,
        "lift_at": {share: value / rate if rate else math.nan for share, value in top.items()},
    }
    replicates = replicate(positions.user, ranked, p, y, draws)
    cell["replicates"] = replicates
    cell["interval"] = {name: interval(values) for name, values in replicates.items()}
    return cell


def replicate(user: Array, ranked: Ranked, p: Array, y: Array, draws: Array) -> dict[str, Array]:
    """Measure every bootstrap replicate, (R,) each; NaN for one that drew none of the positions' users."""
    losses = log_loss(p[None], y[None])
    squares, users = (p - y) ** 2, draws.shape[1]
    count = np.bincount(user, minlength=users)
    total = draws @ count
    total[total == 0] = np.nan
    return {
        "auc": np.array([area(ranked, draw[user]) for draw in draws]),
        "pr_auc": np.array([precision_area(ranked, draw[user]) for draw in draws]),
        "log_loss": draws @ np.bincount(user, losses, users) / total,
        "brier": draws @ np.bincount(user, squares, users) / total,
    }


def draw_users(user: Array, users: int, replicates: int, seed: int) -> Array:
    """Draw the users that are there with replacement: (R, U) f8 how often each."""
    there = np.unique(user)
    draw = np.random.default_rng(seed)
    draws = np.zeros((replicates, users))
    for row in draws:
        np.add.at(row, draw.choice(there, len(there)), 1)
    return draws


def rank(p: Array, y: Array) -> Ranked:
    """Prepare a column of probabilities and its outcomes."""
    distinct, place = np.unique(-p, return_inverse=True)
    return Ranked(place, len(distinct), y)


def area(ranked: Ranked, weight: Array) -> float:
    """Return the ROC AUC of weighted positions, ties counting half; NaN where one outcome is missing."""
    hits = np.bincount(ranked.place, weight * ranked.outcomes, ranked.distinct)
    misses = np.bincount(ranked.place, weight, ranked.distinct) - hits
    below = np.cumsum(misses[::-1])[::-1] - misses / 2  # misses with a lower probability, and half of the ties
    pairs = hits.sum() * misses.sum()
    return float((hits * below).sum() / pairs) if pairs else math.nan


def precision_area(ranked: Ranked, weight: Array) -> float:
    """Return the average precision of weighted positions; NaN where nothing is reached."""
    hits = np.bincount(ranked.place, weight * ranked.outcomes, ranked.distinct)
    found, shown = np.cumsum(hits), np.cumsum(np.bincount(ranked.place, weight, ranked.distinct))
    if not found[-1]:
        return math.nan
    return float((hits * found / np.maximum(shown, 1e-12)).sum() / found[-1])


def interval(values: Array) -> list[float]:
    """Return the interval that holds 95 % of the replicates."""
    known = values[np.isfinite(values)]
    return [float(bound) for bound in np.percentile(known, INTERVAL)] if len(known) else [math.nan] * 2


def compared(main: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Return the paired differences, main minus other, with intervals, by scope, stage and figure."""

    def difference(mine: dict[str, Any], theirs: dict[str, Any], name: str) -> dict[str, Any]:
        gaps = mine["replicates"][name] - theirs["replicates"][name]
        return {"difference": mine[name] - theirs[name], "interval": interval(gaps)}

    return {
        scope: {
            stage: {name: difference(main[scope][stage], other[scope][stage], name) for name in BOOTSTRAPPED}
            for stage in main[scope]
        }
        for scope in main
    }


def slices(positions: Positions) -> Iterator[tuple[str, Array]]:
    """Yield parts of the positions by name, as masks (P,)."""
    yield "all", np.ones(len(positions.user), np.bool_)
    yield "session_end", positions.session_end
    edges = (0, *LENGTHS, np.iinfo(np.int32).max)
    for low, high in pairwise(edges):
        name = f"{low + 1} to {high}" if high in LENGTHS else f"over {low}"
        yield ROWS + name, (positions.length > low) & (positions.length <= high)
    third, twothirds = np.quantile(np.unique(positions.activity), [1 / 3, 2 / 3])
    yield "least active users", positions.activity <= third
    yield "most active users", positions.activity > twothirds
    yield "users' first day", positions.first_day


def pick(positions: Positions, answers: Answers, mask: Array) -> tuple[Positions, Answers]:
    """Keep some positions."""
    return Positions(*(column[mask] for column in positions)), Answers(*(column[mask] for column in answers))
