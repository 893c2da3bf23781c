"""Triggers: the answers of a block in, the triggers that they start out; keeps the campaign memories of its users."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container

import numpy as np

from worker.metrics import LatestTrigger, Metrics
from worker.policy import (
    NO_MEMORY,
    Answer,
    Decision,
    Memory,
    Outcome,
    Policy,
    Rule,
    candidates,
    decide,
    memory_bytes,
    memory_of,
    unarmed,
)
from worker.records import Answers, Encoder, Output


class Triggers:
    """The campaigns of one source partition; in memory, ahead of the table by what is not committed."""

    def __init__(self, policy: Policy, encoder: Encoder, metrics: Metrics) -> None:
        self._policy, self._encoder, self._metrics = policy, encoder, metrics
        self.memories: dict[bytes, Memory] = {}  # by user
        self._unarmed: dict[bytes, int] = {}  # by user, as policy.unarmed counts
        self._changed: set[bytes] = set()  # users whose memory changed since the last call of `changes`

    def load(self, user: bytes, value: bytes | None) -> None:
        """Take up what the table remembers of a user."""
        memory = memory_of(value)
        if memory:
            self._remember(user, memory)

    def of(self, answers: Answers) -> list[Output]:
        """Decide on the answers, in order; return the triggers."""
        assert answers.reach is not None
        fired = np.array([self._unarmed.get(key, 0) for key in answers.keys], np.uint64)
        flags = candidates(
            self._policy, answers.offset < 0, answers.user_stage, answers.reach, answers.degraded, fired
        )  # (A, C)
        rules: dict[int, list[Rule]] = {}  # to be decided, by row
        for row, number in np.argwhere(flags).tolist():
            rules.setdefault(row, []).append(self._policy.rules[number])
        # A memory made inside this block makes all rules of the user's later rows candidates: they may re-arm.
        outputs: list[Output] = []
        made: set[bytes] = set()
        counts: Counter[tuple[str, str]] = Counter()
        for row, key in enumerate(answers.keys):
            if row in rules or key in made:
                chosen = None if key in made else rules[row]
                for decision in self._decide(answers, row, key, chosen, made):
                    counts[decision.campaign.name, decision.outcome] += 1
                    if decision.outcome is Outcome.FIRE:
                        outputs.append(self._encoder.trigger(key, decision, int(answers.event_time[row])))
        self._metrics.decided(counts)
        return outputs

    def _decide(
        self, answers: Answers, row: int, key: bytes, rules: list[Rule] | None, made: set[bytes]
    ) -> list[Decision]:
        assert answers.reach is not None
        memory = self.memories.get(key, NO_MEMORY)
        answer = Answer(
            key,
            int(answers.event_time[row]),
            bool(answers.offset[row] < 0),
            int(answers.user_stage[row]),
            answers.reach[row].tolist(),
            bool(answers.degraded[row]),
        )
        changed, decisions = decide(memory, answer, self._policy, rules)
        if changed is not memory:
            self._remember(key, changed)
            self._changed.add(key)
            made.add(key)
        for decision in decisions:
            if decision.outcome is Outcome.FIRE:
                self._metrics.latest_triggers.append(_latest(answer, decision))
        return decisions

    def _remember(self, user: bytes, memory: Memory) -> None:
        self.memories[user] = memory
        self._unarmed[user] = unarmed(memory, self._policy)

    def changes(self) -> dict[bytes, bytes | None]:
        """Return the table values of the users whose memory changed since the last call."""
        changed = {user: memory_bytes(self.memories[user]) for user in self._changed}
        self._changed.clear()
        return changed

    def keep(self, users: Container[bytes]) -> None:
        """Forget all other users; only after their changes are committed."""
        self.memories = {user: memory for user, memory in self.memories.items() if user in users}
        self._unarmed = {user: self._unarmed[user] for user in self.memories}


def _latest(answer: Answer, decision: Decision) -> LatestTrigger:
    campaign = decision.campaign
    return LatestTrigger(
        answer.user.decode(),
        campaign.name,
        campaign.stage,
        campaign.scope,
        campaign.rule,
        decision.probability,
        campaign.threshold,
        answer.event_time,
    )
