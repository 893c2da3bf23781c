"""The nouns of the reducer: constants of a user's sequence, event columns in, blocks of rows and network inputs out."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

LMAX = 512  # a score sees at least this many of the latest rows, once there are as many
RING = 2 * LMAX  # rows kept per user, in whole pages
PAGE = 8
GAP_MS, LATE_MS = 1_800_000, 60_000
HOUR_MS, DAY_MS = 3_600_000, 86_400_000
WINDOWS_MS = (HOUR_MS, 6 * HOUR_MS, DAY_MS)
IDS_KEPT = 8  # message ids remembered per user

APPLIED, DUPLICATE, LATE = range(3)  # verdicts on events
NEW, CLOSED, REVISED = range(3)  # kinds of rows in a block


class Rules(NamedTuple):
    """What decides sessions, lateness and stages."""

    gap_ms: int
    late_ms: int
    funnel: Array  # (N_TYPES, 3) u1, of Funnel.rules()


class Events(NamedTuple):
    """Columns of events, those of each partition in source order."""

    slot: Array  # (N,) i4
    ts: Array  # (N,) i8, ms
    type: Array  # (N,) u1
    item: Array  # (N,) u4 hash, 0 missing
    category: Array  # (N,) u4 hash, 0 missing
    price: Array  # (N,) u1 price code
    id: Array  # (N,) u8 hash of the message id; 0 for none: never a duplicate, never remembered


class Block(NamedTuple):
    """Rows that the fold wrote, in order."""

    slot: Array  # (R,) i4
    row: Array  # (R,) i8 number of the row in its sequence
    source: Array  # (R,) i4 index into the events, -1 where no event of this chunk is the row's own
    kind: Array  # (R,) u1 NEW, CLOSED (a session_end) or REVISED (moved by a late insert; not answered again)
    ts: Array  # (R,) i8
    type: Array  # (R,) u1
    stage: Array  # (R,) u1 stage of the row itself, NO_STAGE if none
    user_stage: Array  # (R,) u1 deepest stage of the 24 h up to the row
    category: Array  # (R,) u4


class Wanted(NamedTuple):
    """The rows of a block that want an answer, and the rows of their users that the network is to be fed."""

    slot: Array  # (U,) i4, ascending
    begin: Array  # (U,) i8 first row to feed,
    end: Array  # (U,) i8 and the one after the last
    owner: Array  # (A,) i8 index of the user
    row: Array  # (A,) i8 number of the row in its sequence


class Inputs(NamedTuple):
    """Network inputs of U users end to end, and where the A wanted rows lie in them."""

    lengths: Array  # (U,) i4
    type: Array  # (N,) u1
    item: Array  # (N,) u4
    category: Array  # (N,) u4
    features: Array  # (N, WIDTH) u1
    owner: Array  # (A,) i4 index of the user
    position: Array  # (A,) i4 index of the row inside the user's sequence


class Rows(NamedTuple):
    """The kept rows of one user, oldest first."""

    row: Array  # (N,) i8
    ts: Array  # (N,) i8
    type: Array  # (N,) u1
    stage: Array  # (N,) u1
    item: Array  # (N,) u4
    category: Array  # (N,) u4
    features: Array  # (N, WIDTH) u1


def typed(column: Array, kind: np.dtype[Any]) -> Array:
    """Return a column as compiled code takes it: of this type, contiguous and writable; itself where it is so."""
    fits = column.dtype == kind and column.flags.carray
    return column if fits else np.require(column, kind, ["C", "W"])


def base(row: int) -> int:
    """Return the first row that a score sees when `row` is the user's last."""
    return 0 if row < RING else row // LMAX * LMAX - LMAX


def bases(rows: Array) -> Array:
    """Return the base of each of many rows."""
    return np.where(rows < RING, 0, rows // LMAX * LMAX - LMAX)
