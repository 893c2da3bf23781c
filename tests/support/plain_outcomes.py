"""What comes of predictions, in plain Python: the specification of the compiled pass, for one partition."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from model.contract.stages import NO_STAGE, STAGES

Row = tuple[str, int, str, int, int, float, bool]  # user, time, type, stage, category, chance, degraded


@dataclass
class Open:
    """A prediction whose horizon has not passed; deepest stages seen since, -1 for none."""

    time_ms: int
    category: int
    chance: float
    in_category: int = -1
    anywhere: int = -1


class PlainOutcomes:
    """What the users of one partition did after they were scored."""

    def __init__(self, most: int, horizon_ms: int) -> None:
        self._most, self._horizon_ms = most, horizon_ms
        self._open: dict[str, Open] = {}  # oldest first
        self._newest_ms = self.resolved = 0
        self.expected, self.observed = np.zeros((2, len(STAGES))), np.zeros((2, len(STAGES)))

    def observe(self, rows: list[Row]) -> None:
        for user, time_ms, kind, stage, category, chance, degraded in rows:
            self._newest_ms = max(self._newest_ms, time_ms)
            if kind == "session_end":
                continue
            opened = self._open.get(user)
            if opened is not None:
                if stage != NO_STAGE and opened.time_ms <= time_ms <= opened.time_ms + self._horizon_ms:
                    opened.anywhere = max(opened.anywhere, stage)
                    if category == opened.category:
                        opened.in_category = max(opened.in_category, stage)
            elif len(self._open) < self._most and not degraded:
                self._open[user] = Open(time_ms, category, chance)
        while self._open:
            user, opened = next(iter(self._open.items()))
            if opened.time_ms + self._horizon_ms >= self._newest_ms:
                break
            del self._open[user]
            self.resolved += 1
            self.expected += opened.chance
            deepest = np.array([[opened.in_category], [opened.anywhere]])
            self.observed += deepest >= np.arange(len(STAGES))
