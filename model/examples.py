"""Examples: an event log in, labelled and numbered rows of every user out, as training and evaluation use them.

The contract's fold makes the rows; what follows each of them within the horizon is its label.
"""

import hashlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from model.contract.rows import GAP_MS, LATE_MS, Array, Rules
from model.contract.stages import Funnel
from model.contract.vocabulary import Vocabulary
from model.datasets import Log, LogColumns, read_columns
from model.histories import Histories, replay
from model.labels import reach_labels

FINGERPRINTED = ("user", "ts", "type", "item", "category", "price")  # the columns that make the log what it is
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


def at_most(rows: int, examples: Examples, users: list[int]) -> list[int]:
    """Return every n-th of some users, so that they have about so many rows; all of them where they have fewer."""
    total = sum(map(examples.rows_of, users))
    return users[:: -(-total // rows)] if total else users


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
    histories = replay(columns, rules_of(funnel), progress)
    examples = labelled(histories, horizon_ms, vocabulary)
    facts = facts_of(name, fingerprint(columns), len(columns.ts), len(columns.users), histories.recorded)
    return examples, facts | {"rows": len(examples.ts), "censored_rows": censored_rows(examples)}


def rules_of(funnel: Funnel) -> Rules:
    """Return the rules by which a log is replayed."""
    return Rules(GAP_MS, LATE_MS, funnel.rules())


def labelled(histories: Histories, horizon_ms: int, vocabulary: Vocabulary) -> Examples:
    """Label and number the rows of some users."""
    labels = reach_labels(histories, horizon_ms)
    reach = labels.reach.astype(np.int8)  # (N, 2, S)
    reach[labels.censored] = CENSORED
    return Examples(
        users=tuple(histories.users),
        start=histories.offsets,
        ts=histories.ts,
        type=histories.type,
        item=vocabulary.item_index(histories.item),
        category=vocabulary.category_index(histories.category),
        features=histories.features,
        reach=reach,
    )


def censored_rows(examples: Examples) -> int:
    """Count the rows whose horizon leaves the log."""
    return int((examples.reach[:, 0, 0] == CENSORED).sum())


def facts_of(name: str, digest: str, events: int, users: int, recorded: Array) -> dict[str, Any]:
    """Return what provenance says about a log; `recorded` (S, 2) are its stretches."""
    first_ms, last_ms = int(recorded[0, 0]), int(recorded[-1, 1])
    told = {"name": name, "fingerprint": digest, "events": events, "users": users}
    return told | {"first_ms": first_ms, "last_ms": last_ms}


def fingerprint(columns: LogColumns) -> str:
    """Return the sha256 of the clean events of a log, in hex; files and formats may differ where it is equal."""
    return digest_of(columns.users, (getattr(columns, name) for name in FINGERPRINTED))


def digest_of(users: list[str], parts: Iterable[Array]) -> str:
    """Return the fingerprint from the columns of FINGERPRINTED one after another, whole or in parts."""
    digest = hashlib.sha256("\0".join(users).encode())
    for part in parts:
        digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()
