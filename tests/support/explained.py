"""What `funnelcast explain` says of the answers of a log, beside what the worker says."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from model.answering import GraphAnswerer
from model.contract.bundle import SCOPES, SHIPPED
from model.contract.events import ClickEvent
from model.contract.rows import GAP_MS
from model.contract.sequence import default_rules
from model.contract.stages import STAGES
from model.datasets import read_columns, read_log
from model.explain.user import as_dict, explain_user, question_of
from model.histories import replay
from worker.retell import LATEST, Explanation


class Offline:
    """A log of Taobao's, its events in event-time order."""

    def __init__(self, path: Path) -> None:
        pairs = sorted(read_log(path, "taobao"), key=lambda pair: pair[1].timestamp)
        self.events: list[ClickEvent] = [event for _, event in pairs]
        self.rows = [row for row, _ in pairs]  # lines of the log
        self._columns, self._answerer = read_columns(read_log(path, "taobao")), GraphAnswerer(SHIPPED)
        self._recorded = replay(self._columns, progress=False).recorded

    def explain(self, user: str, place: int, ended: bool) -> dict:
        """Explain the answer to the event at that place of `events`, or to the session end after it."""
        rules = default_rules()
        question = question_of(self._columns, user, self.rows[place], ended, rules)
        explained = explain_user(self._columns, question, self._answerer, rules, self._recorded, LATEST)
        return as_dict(self._columns, user, explained, None)

    def place(self, told: Explanation) -> int:
        """Find the event that an answer belongs to: by the offset in its id, or before a session's end by time."""
        if told.event_type != "session_end":
            return int(told.id.rpartition("-")[2])
        last = (told.user_id, told.event_time - GAP_MS)
        return max(n for n, event in enumerate(self.events) if (event.user_id, event.timestamp) == last)


def apart(told: Explanation, offline: Offline) -> float:
    """Return the largest difference of a number of the worker's from the command's, which must explain one answer."""
    expected = offline.explain(told.user_id, offline.place(told), told.event_type == "session_end")
    pairs = [(event["timestamp"], event["event"], event["category"]) for event in expected["events"]]
    assert [(event.event_time, event.event_type, event.category) for event in told.events] == pairs
    mine = [(told.category_probabilities, told.user_probabilities)]
    mine += [(event.category_effect, event.user_effect) for event in told.events]
    theirs = [expected["probabilities"], *(event["effect"] for event in expected["events"])]
    return max(
        float(np.abs(np.subtract(values(scope), values(other[name]))).max())
        for both, other in zip(mine, theirs, strict=True)
        for name, scope in zip(SCOPES, both, strict=True)
    )


def values(chances: dict[str, float]) -> list[float]:
    return [chances[stage] for stage in STAGES]
