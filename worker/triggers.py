"""Triggers: the answers of a block in, the triggers that they start out; keeps the campaign memories of its users."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from worker.memories import Memories
from worker.metrics import LatestTrigger, Metrics
from worker.policy import (
    ARMED,
    FIRED,
    SUPPRESSED,
    Codes,
    Decision,
    Numbers,
    Outcome,
    Policy,
    Rows,
    decide,
    in_holdout,
    trigger_id,
)
from worker.records import Answers


class Triggers:
    """The campaigns of some users, by their slots; in memory, ahead of the table by what is not committed."""

    def __init__(self, policy: Policy, metrics: Metrics) -> None:
        self._policy, self._metrics = policy, metrics
        self.memories = Memories(policy)
        self._changed: dict[int, None] = {}  # slots whose memory changed since the last call of `changes`, in order

    def of(self, answers: Answers, slots: Numbers) -> list[tuple[int, Decision]]:
        """Decide on the answers of the users of these slots, in order; return those that fire, with their rows."""
        found = self.decide(answers, slots)
        decisions = list(self.fired(answers, found))
        self._count(found, [decision for _, decision in decisions])
        fired = [(row, decision) for row, decision in decisions if decision.outcome is Outcome.FIRE]
        self._metrics.latest_triggers.extend(_latest(answers, row, decision) for row, decision in fired)
        return fired

    def decide(self, answers: Answers, slots: Numbers) -> Codes:
        """Return what comes of each campaign at each row (A, C), and remember it."""
        assert answers.reach is not None
        rows = Rows(
            slots,
            answers.event_time.astype(np.int64, copy=False),
            answers.offset < 0,
            answers.user_stage.astype(np.int64),
            np.ascontiguousarray(answers.reach, np.float32),
            answers.degraded,
        )
        found = decide(self._policy, rows, self.memories.of(slots))
        self._changed |= dict.fromkeys(slots[((found == FIRED) | (found == ARMED)).any(axis=1)].tolist())
        return found

    def fired(self, answers: Answers, found: Codes) -> Iterator[tuple[int, Decision]]:
        """Yield the rows at which a campaign fires, or would for a user who is not of its holdout."""
        assert answers.reach is not None
        rules, salt = self._policy.rules, self._policy.salt
        for row, number in np.argwhere(found == FIRED).tolist():
            campaign, user = self._policy.campaigns[number], answers.keys[row]
            held = in_holdout(user, campaign, salt)
            identity = "" if held else trigger_id(user, campaign, int(answers.event_time[row]))
            chance = float(answers.reach[row, rules.scope[number], rules.stage[number]])
            yield row, Decision(campaign, Outcome.HOLDOUT if held else Outcome.FIRE, chance, identity)

    def _count(self, found: Codes, decisions: list[Decision]) -> None:
        counts: Counter[tuple[str, str]] = Counter((decision.campaign.name, decision.outcome) for decision in decisions)
        for number, campaign in enumerate(self._policy.campaigns):
            times = np.bincount(found[:, number], minlength=ARMED + 1).tolist()
            counts.update(
                {(campaign.name, outcome): times[code] for code, outcome in SUPPRESSED.items() if times[code]}
            )
        self._metrics.decided(counts)

    def changes(self) -> dict[int, bytes | None]:
        """Return, by slot, the table values of the users whose memory changed since the last call."""
        changed = {slot: self.memories.value(slot) for slot in self._changed}
        self._changed.clear()
        return changed


def _latest(answers: Answers, row: int, decision: Decision) -> LatestTrigger:
    campaign = decision.campaign
    return LatestTrigger(
        answers.keys[row].decode(),
        campaign.name,
        campaign.stage,
        campaign.scope,
        campaign.rule,
        decision.probability,
        campaign.threshold,
        int(answers.event_time[row]),
    )
