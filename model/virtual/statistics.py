"""Statistics of a journey: what a suspicious reader would look at, as one row of numbers per user.

How much, how often, how fast, which types in which order (all triples of types that are common), how repetitive.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from model.contract.events import SESSION_END, TYPE_CODE, TYPES
from model.contract.rows import DAY_MS, GAP_MS, HOUR_MS, Array

Trigram = tuple[str, str, str]
MOST_TRIGRAMS = 40
QUARTERS = (0.1, 0.25, 0.5, 0.75, 0.9)
NIGHT = (18, 24)  # UTC hours without much business where the shipped habits come from


class Path(NamedTuple):
    """The events of one user in event-time order; items and categories may be hashes or names."""

    type: Array  # (E,) codes
    ts: Array  # (E,) ms
    item: Sequence[object]
    category: Sequence[object]


def statistics(path: Path, trigrams: Sequence[Trigram], first_ms: int) -> Array:
    """Describe one journey."""
    seconds = np.diff(path.ts) / 1000
    pause = seconds > GAP_MS / 1000
    sizes = np.diff(np.flatnonzero(np.concatenate([[True], pause, [True]])))  # events of each session
    hour = path.ts // HOUR_MS % 24
    days = np.unique((path.ts - first_ms) // DAY_MS)
    return np.concatenate(
        [
            [np.log(len(path.ts)), len(sizes), sizes.mean(), sizes.max(), np.median(sizes), (sizes == 1).mean()],
            [len(days), (days.max() - days.min()) if len(days) else 0, len(sizes) / len(days)],
            [((hour >= NIGHT[0]) & (hour < NIGHT[1])).mean(), _entropy(hour)],
            np.bincount(path.type, minlength=len(TYPES)) / len(path.type),
            np.log1p(np.bincount(path.type, minlength=len(TYPES))),
            _quantiles(seconds[~pause]),
            _quantiles(seconds[pause]),
            _repeats(path.item),
            _repeats(path.category),
            _orders(path, pause, trigrams),
        ]
    )


def with_ends(path: Path, pause: Array) -> Array:
    """Return the types with a session end in every pause and at the end."""
    places = np.append(np.flatnonzero(pause) + 1, len(path.type))
    return np.insert(path.type.astype(np.int64), places, SESSION_END)


def common_trigrams(paths: Sequence[Path]) -> list[Trigram]:
    """Return the most common triples of types, session ends included."""
    found = Counter[tuple[int, int, int]]()
    for path in paths:
        codes = with_ends(path, np.diff(path.ts) > GAP_MS).tolist()
        found.update(zip(codes, codes[1:], codes[2:], strict=False))
    chosen = sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))[:MOST_TRIGRAMS]
    return [(TYPES[a], TYPES[b], TYPES[c]) for (a, b, c), _ in chosen]


def _orders(path: Path, pause: Array, trigrams: Sequence[Trigram]) -> Array:
    codes = with_ends(path, pause)
    count = len(TYPES)
    key = (codes[:-2] * count + codes[1:-1]) * count + codes[2:]
    wanted = np.array([(TYPE_CODE[a] * count + TYPE_CODE[b]) * count + TYPE_CODE[c] for a, b, c in trigrams], np.int64)
    return np.asarray((key[:, None] == wanted).sum(0) / max(len(key), 1))


def _quantiles(seconds: Array) -> Array:
    return np.log1p(np.quantile(seconds, QUARTERS)) if len(seconds) else np.full(len(QUARTERS), -1.0)


def _entropy(hour: Array) -> float:
    share = np.bincount(hour, minlength=24) / len(hour)
    share = share[share > 0]
    return float(-(share * np.log(share)).sum())


def _repeats(names: Sequence[object]) -> Array:
    """How various things are: share of distinct ones, of the commonest, and of events that repeat the one before."""
    counts = Counter(names).values()
    again = sum(a == b for a, b in pairwise(names))
    total = len(names)
    return np.array([len(counts) / total, np.log(len(counts)), max(counts) / total, again / max(total - 1, 1)])
