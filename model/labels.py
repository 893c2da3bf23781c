"""Reach labels: which stages a user reaches within the horizon after each row, in its category and anywhere.

In: `Histories`. Out: `Labels` for every row, session ends included. A row whose horizon leaves the log is censored, not
negative.
"""

from typing import NamedTuple

import numpy as np

from model.contract.jit import jit
from model.contract.rows import Array
from model.contract.stages import NO_STAGE, STAGES
from model.histories import Histories

N_STAGES = len(STAGES)
SCOPES = ("category", "user")  # in the category of the row, anywhere
NEVER_AGAIN = 1 << 62  # no later row reaches the stage


class Labels(NamedTuple):
    """What happens after each of N rows."""

    reach: Array  # (N, 2, 6) uint8 whether a later row within the horizon has the stage or a deeper one, by scope
    censored: Array  # (N,) bool whether the log ends before the horizon does


def reach_labels(histories: Histories, horizon_ms: int) -> Labels:
    """Label every row of the histories; a row exactly at the end of the horizon counts."""
    reach = np.zeros((len(histories.ts), len(SCOPES), N_STAGES), np.uint8)  # (N, 2, 6)
    user = np.repeat(np.arange(len(histories.users)), np.diff(histories.offsets))  # (N,)
    by_category = np.lexsort((histories.category, user))  # stable: rows of a category keep their order
    for scope, order in enumerate((by_category, np.arange(len(user)))):
        key = histories.category[order] if scope == 0 else np.zeros(len(user), np.uint32)
        ends = np.ones(len(user), np.bool_)  # (N,) the row is the last of its user, or of the category there
        ends[:-1] = (np.diff(user[order]) != 0) | (np.diff(key) != 0)
        soonest = np.zeros(N_STAGES, np.int64)
        _look_ahead(order, ends, histories.ts, histories.stage, horizon_ms, soonest, reach[:, scope])
    return Labels(reach, histories.ts + horizon_ms > log_ends(histories))


def log_ends(histories: Histories) -> Array:
    """Return for each row the end of the recorded stretch of the log in which it lies, (N,) int64."""
    first, last = histories.recorded.T
    stretch = np.searchsorted(first, histories.ts, "right") - 1  # (N,)
    return np.take(last, stretch)


@jit
def _look_ahead(
    order: Array, ends: Array, ts: Array, stage: Array, horizon_ms: int, soonest: Array, out: Array
) -> None:
    """Walk the rows backwards in the given order, keeping in `soonest` when each stage is next; write out (N, 6)."""
    for i in range(len(order) - 1, -1, -1):
        k = order[i]
        for s in range(N_STAGES):
            if ends[i]:
                soonest[s] = NEVER_AGAIN
            out[k, s] = soonest[s] - ts[k] <= horizon_ms
            if stage[k] != NO_STAGE and s <= stage[k]:
                soonest[s] = ts[k]
