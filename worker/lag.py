"""Lag: how many messages of a partition wait, and for how long the oldest of them has waited."""

from __future__ import annotations

from collections import deque

ENDS_KEPT = 4096  # end offsets that are remembered, one a second


class Lag:
    """Follows the end of one partition; asked about once a second."""

    def __init__(self) -> None:
        self._ends: deque[tuple[int, float]] = deque()  # end offsets and when they were first seen, oldest first

    def seconds(self, next_offset: int, end: int, arrival_ms: int | None, wall: float) -> float:
        """Return the age of the oldest message that waits, from `next_offset` on.

        It is taken from the message's arrival where that is known, else from when its offset was first seen.
        """
        if len(self._ends) < ENDS_KEPT and (not self._ends or self._ends[-1][0] < end):
            self._ends.append((end, wall))
        while self._ends and self._ends[0][0] <= next_offset:
            self._ends.popleft()
        if next_offset >= end:
            return 0.0
        since = self._ends[0][1] if self._ends else wall
        if arrival_ms is not None:
            since = min(since, arrival_ms / 1000)
        return max(0.0, wall - since)
