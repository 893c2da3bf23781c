"""Where the users of some partitions live in memory: a head per user, rows in pages, what the table lacks."""

from typing import Any, NamedTuple

import numpy as np

from model.contract.events import N_CLASSES
from model.contract.features import WIDTH
from model.contract.rows import IDS_KEPT, PAGE, RING, Array
from model.contract.stages import STAGES

NEVER = -1
NOT_DUE = np.iinfo(np.int64).max  # due time of a user without an open session
CHAINS = 128  # categories fall into this many chains of rows: a category is found in one of them, row by row
PAGES_KEPT = RING // PAGE
MORE = 1024  # users or pages: less than 2 MB

# The head is as of the latest row. `gone_*` is as of the latest row that left the ring: with the rows kept it gives the
# rest of the head, so that the table stores no more.
HEAD: np.dtype[Any] = np.dtype(
    [
        ("rows", "i8"),
        ("event_ms", "i8"),  # time of the latest event, session ends excluded
        ("ids_seen", "i8"),
        ("ids", "u8", IDS_KEPT),
        ("last", "i8", N_CLASSES),  # time of the latest row of the class
        ("start", "i8", 3),  # first row of each window
        ("total", "i4", N_CLASSES),
        ("days_with", "i4", N_CLASSES),
        ("window", "i4", (3, N_CLASSES)),
        ("day_stages", "i4", len(STAGES)),  # rows of each stage in the last window, 24 h
        ("days", "i4"),
        ("cart", "i4"),
        ("chain", "i4", CHAINS),  # 1 + latest row of the chain
        ("gone_last", "i8", N_CLASSES),
        ("gone_total", "i4", N_CLASSES),
        ("gone_days_with", "i4", N_CLASSES),
        ("gone_days", "i4"),
        ("gone_cart", "i4"),
        ("block", "i8"),  # the block in which the user was answered last,
        ("answered", "i8"),  # and the highest row answered there
        ("dirty", "i8"),  # 1 if changed since the last pack,
        ("low", "i8"),  # and the lowest row changed
    ]
)
PAGES: np.dtype[Any] = np.dtype(
    [
        ("ts", "i8", PAGE),
        ("item", "u4", PAGE),
        ("category", "u4", PAGE),
        ("link", "u2", PAGE),  # rows back to the chain's previous one, 0 if too far or none
        ("cart", "u2", PAGE),
        ("type", "u1", PAGE),
        ("stage", "u1", PAGE),
        ("features", "u1", (PAGE, WIDTH)),
    ]
)


class Arena(NamedTuple):
    """The users of some partitions; row k of a user lies in page k // PAGE, found through `table`."""

    heads: Array  # (users,) HEAD
    due: Array  # (users,) i8 stream time at which the open session is closed
    partition: Array  # (users,) i4 place of the user's partition
    table: Array  # (users, PAGES_KEPT) i4
    pages: Array  # (pages,) PAGES
    free: Array  # (pages,) i4 stack of unused pages
    changed: Array  # (users,) i4 users changed since the last pack
    counts: Array  # (2,) i8 unused pages, changed users


def blank_heads(users: int) -> Array:
    """Heads of users without rows."""
    heads = np.zeros(users, HEAD)
    for name in ("event_ms", "last", "gone_last"):
        heads[name] = NEVER
    return heads


def new_arena(users: int, pages: int) -> Arena:
    """An empty arena."""
    return Arena(
        blank_heads(users),
        np.full(users, NOT_DUE, np.int64),
        np.zeros(users, np.int32),
        np.zeros((users, PAGES_KEPT), np.int32),
        np.zeros(pages, PAGES),
        np.arange(pages, dtype=np.int32),
        np.zeros(users, np.int32),
        np.array([pages, 0], np.int64),
    )


def more_users(arena: Arena) -> None:
    """Make room for as many users again, at most `MORE`; in place."""
    users = len(arena.heads)
    more = min(users, MORE)
    for column in (arena.heads, arena.due, arena.partition, arena.table, arena.changed):
        _enlarge(column, more)
    arena.heads[users:], arena.due[users:] = blank_heads(more), NOT_DUE


def more_pages(arena: Arena) -> None:
    """Make room for as many pages again, at most `MORE`; in place."""
    pages, unused = len(arena.pages), int(arena.counts[0])
    more = min(pages, MORE)
    for column in (arena.pages, arena.free):
        _enlarge(column, more)
    arena.free[unused : unused + more] = np.arange(pages, pages + more)
    arena.counts[0] += more


def _enlarge(column: Array, more: int) -> None:
    """Add blank rows where the column lies: copies of large ones would hold up every user. No view may outlive it."""
    column.resize((len(column) + more, *column.shape[1:]), refcheck=False)
