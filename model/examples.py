"""Examples: an event log in, labelled and numbered rows of every user out, as training and evaluation use them.

The contract's fold makes the rows; what follows each of them within the horizon is its label.
"""

import hashlib
from typing import Any, NamedTuple

import numpy as np

from model.contract.rows import GAP_MS, LATE_MS, Array, Rules
from model.contract.stages import Funnel
from model.contract.vocabulary import Vocabulary
from model.datasets import Log, LogColumns, read_columns
from model.histories import replay
from model.labels import reach_labels

CENSORED = -1  # the horizon leaves the log: neither reached nor not


class Examples(NamedTuple):
    """Labelled rows of U users end to end; item and category are embedding rows."""

    users: tuple[str, ...]
    start: Array  # (U + 1,) i8 first row of each user, and the end
    ts: Array  # (N,) i8 ms
    type: Array  # (N,) u1
    item: Array  # (N,) i8
    category: Array  # (N,) i8
    features: Array  # (N, WIDTH) u1
    reach: Array  # (N, 2, S) i1: 1 reached, 0 not, CENSORED

    def rows_of(self, user: int) -> int:
        return int(self.start[user + 1] - self.start[user])

    def user_of(self, rows: Array) -> Array:
        """Return the user of each of many rows."""
        return np.searchsorted(self.start, rows, "right") - 1


def read_examples(
    log: Log, funnel: Funnel, horizon_ms: int, vocabulary: Vocabulary, progress: bool | None = None
) -> tuple[Examples, dict[str, Any]]:
    """Replay and label a log; also return what provenance says about the data."""
    return examples_of(read_columns(log), log.path.name, funnel, horizon_ms, vocabulary, progress)


def examples_of(
    columns: LogColumns,
    name: str,
    funnel: Funnel,
    horizon_ms: int,
    vocabulary: Vocabulary,
    progress: bool | None = None,
) -> tuple[Examples, dict[str, Any]]:
    """Replay and label the events of a log, as `read_examples` does."""
    histories = replay(columns, Rules(GAP_MS, LATE_MS, funnel.rules()), progress)
    labels = reach_labels(histories, horizon_ms)
    reach = labels.reach.astype(np.int8)  # (N, 2, S)
    reach[labels.censored] = CENSORED
    examples = Examples(
        users=tuple(histories.users),
        start=histories.offsets,
        ts=histories.ts,
        type=histories.type,
        item=vocabulary.item_index(histories.item),
        category=vocabulary.category_index(histories.category),
        features=histories.features,
        reach=reach,
    )
    data = {
        "name": name,
        "fingerprint": fingerprint(columns),
        "events": len(columns.ts),
        "users": len(columns.users),
        "rows": len(histories.ts),
        "censored_rows": int(labels.censored.sum()),
        "first_ms": int(columns.ts.min()),
        "last_ms": int(columns.ts.max()),
    }
    return examples, data


def fingerprint(columns: LogColumns) -> str:
    """Return the sha256 of the clean events of a log, in hex; files and formats may differ where it is equal."""
    digest = hashlib.sha256("\0".join(columns.users).encode())
    for name in ("user", "ts", "type", "item", "category", "price"):
        digest.update(np.ascontiguousarray(getattr(columns, name)).tobytes())
    return digest.hexdigest()
