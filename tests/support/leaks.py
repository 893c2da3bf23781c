"""Leaks: what examples tell of a moment that could not be known then, found by reading the log as it ended then."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from model.datasets import LogColumns
from model.examples import CENSORED, Examples

INPUTS = ("ts", "type", "item", "category", "features")

Make = Callable[[LogColumns], Examples]


def until(columns: LogColumns, moment: int) -> LogColumns:
    """Return the log as it ended at a moment; its users keep their codes."""
    there = columns.ts < moment
    return columns._replace(**{name: getattr(columns, name)[there] for name in columns._fields[:8]})


def prefixes(short: Examples, long: Examples) -> list[tuple[slice, slice]]:
    """Return where the rows of each user of one log are, and the same rows of a longer log; users come by name."""
    number = {user: index for index, user in enumerate(long.users)}
    found = []
    for u, user in enumerate(short.users):
        first, begin = int(short.start[u]), int(long.start[number[user]])
        found.append((slice(first, int(short.start[u + 1])), slice(begin, begin + short.rows_of(u))))
    return found


def leaks(make: Make, columns: LogColumns, moment: int) -> set[str]:
    """Name the fields of the examples of a log that would be others, had the log ended at a moment.

    Inputs may not differ in any row. A label that the shorter log gives may not either: what comes after the horizon
    has no part in it.
    """
    return unlike(make(until(columns, moment)), make(columns))


def unlike(short: Examples, long: Examples) -> set[str]:
    """Name the fields in which rows of examples differ from the same rows of a longer log."""
    found = set()
    for mine, theirs in prefixes(short, long):
        found |= {
            name for name in INPUTS if not np.array_equal(getattr(short, name)[mine], getattr(long, name)[theirs])
        }
        known = short.reach[mine] != CENSORED
        if not np.array_equal(short.reach[mine][known], long.reach[theirs][known]):
            found.add("reach")
    return found
