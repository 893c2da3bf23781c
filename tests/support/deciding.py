"""The worker's policy asked with answers of plain Python: decisions of a block, and the users' memories after it."""

from __future__ import annotations

import numpy as np

from model.contract.stages import STAGES
from tests.support.plain_policy import NO_MEMORY, Answer, Memory, memory_bytes, memory_of
from worker.campaigns import Campaign
from worker.metrics import Metrics
from worker.policy import FIRED, SCOPES, SUPPRESSED, Decision, Policy
from worker.records import Answers
from worker.triggers import Triggers


def decide_all(policy: Policy, answers: list[Answer], memories: dict[bytes, Memory]) -> list[list[Decision]]:
    """Decide on a block of answers as the worker does, from the users' memories on, which are brought up to date."""
    users = list(dict.fromkeys(one.user for one in answers))
    slots = np.array([users.index(one.user) for one in answers], np.int64)
    triggers = Triggers(policy, Metrics())
    for slot, user in enumerate(users):
        triggers.memories.load(slot, memory_bytes(memories.get(user, NO_MEMORY)))
    rows = columns(answers)
    found = triggers.decide(rows, slots)
    memories.update({users[slot]: memory_of(value) for slot, value in triggers.changes().items()})
    fired = {(row, decision.campaign.name): decision for row, decision in triggers.fired(rows, found)}
    return [
        [
            fired[row, one.name] if code == FIRED else Decision(one, SUPPRESSED[code], chance(answers[row], one), "")
            for one, code in zip(policy.campaigns, codes, strict=True)
            if code in {FIRED, *SUPPRESSED}
        ]
        for row, codes in enumerate(found.tolist())
    ]


def chance(one: Answer, of: Campaign) -> float:
    return float(one.reach[SCOPES.index(of.scope)][STAGES.index(of.stage)])


def columns(answers: list[Answer]) -> Answers:
    zeros = np.zeros(len(answers), np.int64)
    ended = np.array([one.session_end for one in answers])
    times = np.array([one.event_time for one in answers])
    stages = np.array([one.user_stage for one in answers], "u1")
    reach = np.array([one.reach for one in answers], "f4")
    degraded = np.array([one.degraded for one in answers])
    keys = [one.user for one in answers]
    return Answers(keys, zeros - ended, times, times, zeros, stages, [None] * len(keys), zeros, reach, None, degraded)


def decide(memory: Memory, one: Answer, policy: Policy) -> tuple[Memory, list[Decision]]:
    memories = {one.user: memory}
    (decisions,) = decide_all(policy, [one], memories)
    return memories[one.user], decisions
