"""Habits: when and how the people of a log come and what they turn to next, as a small JSON without anybody's events.

In: a log and its replayed histories. Out: `Habits`, from which virtual users draw all that the network does not decide.
"""

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from model.contract.errors import FunnelcastError
from model.contract.events import SESSION_END, TYPES
from model.contract.rows import DAY_MS, HOUR_MS, Array
from model.datasets import LogColumns
from model.histories import Histories

SAME_ITEM, SAME_CATEGORY, SEEN_ITEM, SEEN_CATEGORY, NEW_CATEGORY = range(5)  # what an event turns to
RANKS = 20  # of things seen before, the latest first
QUANTILES = 33  # of the gaps inside a session
FEWEST_PAIRS = 50  # of two types, below which all pairs together give gap and turn
MOST_CATEGORIES = 1000
NEAR_HOURS = 3
HOURS = 24
ANY = "any"
FEW_EVENTS = 3  # weight of everyone's manner in a user's own
MOST_MANNERS = 24
MOST_VISITS = 4000  # sessions of which every two are compared
MOST_USERS = 5000  # whose turns are looked at, one event at a time


class Tree(msgspec.Struct, frozen=True):
    """One regression tree, node by node; leaves have feature -2."""

    feature: list[int]
    threshold: list[float]
    left: list[int]
    right: list[int]
    value: list[float]


class Refiner(msgspec.Struct, frozen=True):
    """The classifier that told virtual from real users, used to keep the journeys that it takes for real."""

    trees: list[Tree]
    start: float  # log-odds before the first tree
    rate: float  # learning rate
    ceiling: float  # log-odds from which a journey is always kept
    trigrams: list[tuple[str, str, str]]  # of the statistics that it looks at


class Manner(msgspec.Struct, frozen=True):
    """How a group of users differs from all of them."""

    users: int
    turns: list[float]  # factors on the chances of what an event turns to
    pace: float  # factor on the gaps inside a session


class Habits(msgspec.Struct, frozen=True, kw_only=True):
    """What virtual users do beside what the network decides."""

    version: int = 1
    source: dict[str, Any]
    start_ms: int
    days: int
    types: list[str]  # that occur
    first: dict[str, float]  # share of each type among first events
    visits: list[tuple[int, int, int]]  # sessions, days with a session, users
    day_share: list[float]  # of the sessions on each day
    hour_share: list[float]  # of the sessions at each hour of the day
    own_hours: float  # share of sessions near the user's own hour
    gaps: dict[str, list[float]]  # "type>type" or "any": quantiles of seconds between events of a session
    turns: dict[str, list[float]]  # likewise: chances of what the second event turns to
    manners: list[Manner]
    ranks: list[list[float]]  # of items, then categories seen before: chance of the latest, the one before, ...
    categories: list[tuple[str, int, int]]  # the most visited: name, visitors, items
    refiner: Refiner | None = None


class Visit(NamedTuple):
    """Sessions of a log."""

    user: Array  # (V,) i8
    start: Array  # (V,) i8 ms


def fit_habits(columns: LogColumns, histories: Histories, users: Array, source: dict[str, Any]) -> Habits:
    """Fit the habits of some users (U,) of the log."""
    owner = np.repeat(np.arange(len(histories.users)), np.diff(histories.offsets))  # (N,)
    mine = np.isin(owner, users)
    ended, ts = histories.session_end, histories.ts
    fresh = np.append(True, (owner[1:] != owner[:-1]) | ended[:-1])  # (N,) a session begins
    first_ms = int(columns.ts.min()) // DAY_MS * DAY_MS
    days = int((columns.ts.max() - first_ms) // DAY_MS) + 1
    visit = Visit(owner[fresh & mine & ~ended], ts[fresh & mine & ~ended])
    second = np.flatnonzero(mine & ~fresh & ~ended)  # events that follow one of the same session
    begun = histories.type[histories.offsets[users]]
    looked_at = users[:MOST_USERS]
    turns, ranks = _turns(histories, looked_at)
    second = second[np.isin(owner[second], looked_at)]
    pairs = _pairs(histories.type, second)
    kinds = np.unique(histories.type[mine & ~ended]).tolist()
    return Habits(
        source=source,
        start_ms=first_ms,
        days=days,
        types=[TYPES[code] for code in kinds],
        first={TYPES[code]: round(float((begun == code).mean()), 6) for code in np.unique(begun).tolist()},
        visits=_visits(visit, first_ms),
        day_share=_shares((visit.start - first_ms) // DAY_MS, days),
        hour_share=_shares(visit.start // HOUR_MS % HOURS, HOURS),
        own_hours=_own_hours(visit),
        gaps={name: _quantiles((ts[rows] - ts[rows - 1]) / 1000) for name, rows in pairs.items()},
        turns={name: _chances(turns[rows], NEW_CATEGORY + 1) for name, rows in pairs.items()},
        manners=_manners(owner[second], turns[second], np.log1p((ts[second] - ts[second - 1]) / 1000)),
        ranks=ranks,
        categories=_categories(columns, users),
    )


def _pairs(types: Array, rows: Array) -> dict[str, Array]:
    """Group rows by their type and that of the row before; all of them are ANY."""
    key = types[rows - 1].astype(np.int64) * len(TYPES) + types[rows]
    found = {ANY: rows}
    for code in np.unique(key).tolist():
        if (key == code).sum() >= FEWEST_PAIRS:
            found[f"{TYPES[code // len(TYPES)]}>{TYPES[code % len(TYPES)]}"] = rows[key == code]
    return found


def _quantiles(seconds: Array) -> list[float]:
    return [round(float(q), 3) for q in np.quantile(seconds, np.linspace(0, 1, QUANTILES))]


def _shares(codes: Array, count: int) -> list[float]:
    return _chances(codes, count, 0.5)


def _chances(codes: Array, count: int, prior: float = 0.0) -> list[float]:
    hits = np.bincount(codes, minlength=count)[:count] + prior
    return [round(float(share), 6) for share in hits / max(hits.sum(), 1e-9)]


def _visits(visit: Visit, first_ms: int) -> list[tuple[int, int, int]]:
    pairs = Counter[tuple[int, int]]()
    for user in np.unique(visit.user).tolist():
        start = visit.start[visit.user == user]
        pairs[len(start), len(np.unique((start - first_ms) // DAY_MS))] += 1
    return sorted((sessions, days, users) for (sessions, days), users in pairs.items())


def _own_hours(visit: Visit) -> float:
    """Return the share of sessions near an hour of the user's own that explains how near two of them are."""
    some = visit.user <= visit.user[:MOST_VISITS][-1]  # sessions lie user by user
    visit = Visit(visit.user[some], visit.start[some])
    hour = visit.start // HOUR_MS % HOURS
    near = np.abs((hour[:, None] - hour[None] + HOURS // 2) % HOURS - HOURS // 2) <= NEAR_HOURS
    same = visit.user[:, None] == visit.user[None]
    np.fill_diagonal(same, False)
    if not same.any():
        return 0.0
    of_one, of_any = near[same].mean(), near.mean()
    return round(float(np.sqrt(np.clip((of_one - of_any) / (1 - of_any), 0, 1))), 6)


def _turns(histories: Histories, users: Array) -> tuple[Array, list[list[float]]]:
    """Return what each row turns to (N,), and how far back the items and categories lie that are seen again."""
    turns = np.zeros(len(histories.ts), np.int64)
    back: tuple[list[int], list[int]] = ([0], [0])
    for user in users.tolist():
        items: dict[int, None] = {}  # in the order of their latest event
        categories: dict[int, None] = {}
        for row in range(int(histories.offsets[user]), int(histories.offsets[user + 1])):
            if histories.type[row] == SESSION_END:
                continue
            item, category = int(histories.item[row]), int(histories.category[row])
            turns[row] = _turn(items, categories, item, category, back)
            for seen, name in ((items, item), (categories, category)):
                seen.pop(name, None)
                seen[name] = None
    ranks = [_chances(np.minimum(np.array(found), RANKS - 1), RANKS) for found in back]
    return turns, ranks


def _turn(
    items: dict[int, None], categories: dict[int, None], item: int, category: int, back: tuple[list[int], list[int]]
) -> int:
    if item in items:
        return SAME_ITEM if _is_latest(items, item, back[0]) else SEEN_ITEM
    if category in categories:
        return SAME_CATEGORY if _is_latest(categories, category, back[1]) else SEEN_CATEGORY
    return NEW_CATEGORY


def _is_latest(seen: dict[int, None], name: int, back: list[int]) -> bool:
    """Tell whether a name was the last one seen; note how far back it is if not."""
    rank = list(reversed(seen)).index(name)
    if rank:
        back.append(rank - 1)
    return not rank


def _manners(user: Array, turns: Array, gaps: Array) -> list[Manner]:
    """Group users by what they turn to and how fast; those with few events hardly differ from all."""
    from sklearn.cluster import KMeans  # those who only simulate do without it

    count = np.bincount(user)
    there = np.flatnonzero(count)
    table = np.zeros((len(count), NEW_CATEGORY + 1))
    np.add.at(table, (user, turns), 1)
    everyone = table.sum(0) / table.sum()
    shares = (table[there] + FEW_EVENTS * everyone) / (count[there] + FEW_EVENTS)[:, None]  # (U, 5)
    pace = np.bincount(user, gaps - gaps.mean())[there] / (count[there] + FEW_EVENTS)  # (U,)
    groups = min(MOST_MANNERS, len(there))
    look = np.column_stack([shares, pace])
    group = KMeans(groups, n_init=4, random_state=0).fit_predict(look / np.maximum(look.std(0), 1e-9))
    return [
        Manner(
            int((group == g).sum()),
            [round(float(f), 4) for f in shares[group == g].mean(0) / np.maximum(everyone, 1e-9)],
            round(float(np.exp(pace[group == g].mean())), 4),
        )
        for g in range(groups)
    ]


def _categories(columns: LogColumns, users: Array) -> list[tuple[str, int, int]]:
    mine = np.isin(columns.user, users) & (columns.category > 0)
    pairs = np.unique(np.stack([columns.category[mine], columns.user[mine]], 1), axis=0)
    visitors = Counter(pairs[:, 0].tolist())
    things = np.unique(np.stack([columns.category[mine], columns.item[mine]], 1), axis=0)
    items = Counter(things[:, 0].tolist())
    named = [(columns.categories[code], count, items[code]) for code, count in visitors.items()]
    return sorted(named, key=lambda found: (-found[1], found[0]))[:MOST_CATEGORIES]


def load_habits(path: Path) -> Habits:
    """Read a habits file; FunnelcastError if it is none."""
    try:
        habits = msgspec.json.decode(path.read_bytes(), type=Habits)
    except OSError as error:
        raise FunnelcastError(f"no habits in {path}: {error.strerror}; fit some with --like LOG") from None
    except msgspec.MsgspecError as error:
        raise FunnelcastError(f"{path} is no habits file ({error}); fit one with --like LOG") from None
    if habits.version != 1:
        raise FunnelcastError(f"{path} has version {habits.version}, expected 1; fit it again with --like LOG")
    return habits
