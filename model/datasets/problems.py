"""The rows of a log that gave no event: counted by reason, the first few kept with their line numbers."""

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

SHOWN = 5


class Reason(StrEnum):
    """Why a row gave no event."""

    OUTSIDE_DAYS = "outside the days of the log"
    LEFT_OUT = "left out by --where"
    NOT_DRAWN = "of users not drawn by --sample"
    DUPLICATE = "exact duplicate"
    UNMAPPED_EVENT = "event without a mapping"
    NOT_A_ROW = "not a row of the log"
    INVALID_UTF8 = "invalid UTF-8"
    MISSING_USER = "missing user"
    MISSING_EVENT = "missing event"
    BAD_TIME = "unreadable time"
    BAD_PRICE = "unreadable price"
    BAD_NAME = "unreadable name"
    OUT_OF_RANGE = "number out of range"


EXPECTED = frozenset({Reason.OUTSIDE_DAYS, Reason.DUPLICATE, Reason.LEFT_OUT, Reason.NOT_DRAWN})  # counted, not shown
DROPPED = EXPECTED | {Reason.UNMAPPED_EVENT}  # sound rows, left out by a rule; the others are broken


class BadValue(Exception):
    """A value that cannot become part of an event."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


class Problem(NamedTuple):
    """One row that gave no event; `line` counts from 1, as editors do, over all files of the log."""

    line: int
    reason: Reason
    detail: str

    def __str__(self) -> str:
        return f"line {self.line:,}: {self.reason}" + (f" ({self.detail})" if self.detail else "")


@dataclass(slots=True)
class Problems:
    """Account of a log: every row read was yielded, dropped by a rule, or broken."""

    read: int = 0
    yielded: int = 0
    counts: Counter[Reason] = field(default_factory=Counter)
    first: list[Problem] = field(default_factory=list)  # the first few that the format does not expect

    @property
    def dropped(self) -> int:
        return sum(count for reason, count in self.counts.items() if reason in DROPPED)

    @property
    def broken(self) -> int:
        return self.counts.total() - self.dropped

    def add(self, row: int, problem: BadValue) -> None:
        """Count one row that gave no event; `row` counts from 0."""
        self.counts[problem.reason] += 1
        if problem.reason not in EXPECTED and len(self.first) < SHOWN:
            self.first.append(Problem(row + 1, problem.reason, problem.detail))

    def summary(self) -> str:
        """Say in one sentence what became of the rows."""
        return f"{self.read:,} rows read: {self.yielded:,} events, {self._kind(True)}, {self._kind(False)}."

    def lines(self) -> list[str]:
        """Say where the first rows lie that the format does not expect."""
        return [str(problem) for problem in self.first]

    def _kind(self, dropped: bool) -> str:
        counts = {reason: n for reason, n in self.counts.most_common() if (reason in DROPPED) == dropped}
        text = f"{sum(counts.values()):,} {'dropped' if dropped else 'broken'}"
        return text + (f" ({', '.join(f'{n:,} {reason}' for reason, n in counts.items())})" if counts else "")
