"""Pace: measured service times in; how large a run may be and how long its oldest request may wait out.

A part of the latency target belongs to the network: a run and the wait before it must fit. Fetching, folding and the
transaction take the rest. A run costs something however small it is: where that alone is too much, smaller runs would
only make the queue longer.
"""

from __future__ import annotations

import math

SHARE = 0.3  # of the latency target
MEMORY = 0.1  # weight of the latest run in the moving average
FORGET = 0.01  # each run in a thread takes off so much of the estimate of runs on the loop: these are tried again


class Pace:
    """The pace of one kind of run, whose size is counted in `units` (users, rows).

    The fixed cost of a run is that of `fixed_units` units.
    """

    def __init__(self, size: int, wait_seconds: float, target_seconds: float, fixed_units: int = 0) -> None:
        self._size, self._wait_seconds, self._fixed_units = size, wait_seconds, fixed_units
        self._budget_seconds = SHARE * target_seconds
        self._unit_seconds = 0.0  # moving average
        self._inline_seconds = 0.0  # the same, of runs on the event loop: in a thread a run also waits for the loop

    def ran(self, units: int, seconds: float, inline: bool = False) -> None:
        """Learn from a run, on the event loop or in a thread."""
        latest = seconds / max(1, self._fixed_units + units)
        self._unit_seconds += (MEMORY if self._unit_seconds else 1.0) * (latest - self._unit_seconds)
        if inline:
            self._inline_seconds += (MEMORY if self._inline_seconds else 1.0) * (latest - self._inline_seconds)
        else:
            self._inline_seconds *= 1 - FORGET

    def inline_seconds(self, units: int) -> float:
        """Return how long one run of that many is expected to hold up the event loop; 0 before the first."""
        return (self._fixed_units + units) * self._inline_seconds

    def seconds(self, units: int) -> float:
        """Return how long that many are expected to take, in as many runs as they need; 0 before the first."""
        return (math.ceil(units / self.size()) * self._fixed_units + units) * self._unit_seconds

    def size(self) -> int:
        """Return the most units of a run: as configured, fewer where half the budget does not suffice for them."""
        if not self._unit_seconds:
            return self._size
        most = int(self._budget_seconds / 2 / self._unit_seconds) - self._fixed_units
        return min(self._size, max(1, self._fixed_units, most))

    def wait_seconds(self, units: int) -> float:
        """Return how long the oldest of `units` may wait: as configured, less where the run would come too late."""
        return max(0.0, min(self._wait_seconds, self._budget_seconds - self.seconds(units)))
