"""Pace: measured service times in; how large a run may be and how long its oldest request may wait out.

A part of the latency target belongs to the network: a run and the wait before it must fit. Fetching, folding and the
transaction take the rest.
"""

from __future__ import annotations

SHARE = 0.3  # of the latency target
MEMORY = 0.1  # weight of the latest run in the moving average


class Pace:
    """The pace of one kind of run, whose size is counted in `units` (users, rows)."""

    def __init__(self, size: int, wait_seconds: float, target_seconds: float) -> None:
        self._size, self._wait_seconds = size, wait_seconds
        self._budget_seconds = SHARE * target_seconds
        self._unit_seconds = 0.0  # moving average, the fixed cost of a run included

    def ran(self, units: int, seconds: float) -> None:
        """Learn from a run."""
        latest = seconds / max(1, units)
        self._unit_seconds += (MEMORY if self._unit_seconds else 1.0) * (latest - self._unit_seconds)

    def seconds(self, units: int) -> float:
        """Return how long a run of that size is expected to take; 0 before the first."""
        return units * self._unit_seconds

    def size(self) -> int:
        """Return the most units of a run: as configured, fewer where half the budget does not suffice for them."""
        if not self._unit_seconds:
            return self._size
        return max(1, min(self._size, int(self._budget_seconds / 2 / self._unit_seconds)))

    def wait_seconds(self, units: int) -> float:
        """Return how long the oldest of `units` may wait: as configured, less where the run would come too late."""
        return max(0.0, min(self._wait_seconds, self._budget_seconds - self.seconds(units)))
