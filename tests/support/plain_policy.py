"""The campaigns' policy in plain Python, one answer of one user at a time: what the compiled one must equal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from struct import Struct
from typing import Any, NamedTuple, TypeAlias

import numpy.typing as npt

from model.contract.stages import STAGES
from worker.campaigns import Campaign
from worker.policy import SCOPES, Decision, Outcome, Policy, in_holdout, trigger_id

_ENTRY = Struct("<Iq")


class Mark(NamedTuple):
    """What is remembered of one campaign: when it last fired for the user (or would have), and whether it may again."""

    fired_ms: int
    armed: bool


Memory: TypeAlias = Mapping[int, Mark]  # by campaign key
NO_MEMORY: Memory = {}


class Answer(NamedTuple):
    """What the policy looks at: one answered row of one user."""

    user: bytes
    event_time: int
    session_end: bool
    user_stage: int
    reach: Sequence[Sequence[float]] | npt.NDArray[Any]  # (2, 6): in the category, anywhere
    degraded: bool


def decide(memory: Memory, answer: Answer, policy: Policy) -> tuple[Memory, list[Decision]]:
    """Decide on each campaign for one answer; return the new memory too."""
    decisions: list[Decision] = []
    marks: dict[int, Mark] = {}
    for campaign in policy.campaigns:
        probability = float(answer.reach[SCOPES.index(campaign.scope)][STAGES.index(campaign.stage)])
        mark = memory.get(campaign.key)
        if holds(campaign, probability):
            if not applies(campaign, answer):
                continue
            outcome = _outcome(mark, answer, campaign, policy.salt)
            identity = trigger_id(answer.user, campaign, answer.event_time) if outcome is Outcome.FIRE else ""
            decisions.append(Decision(campaign, outcome, probability, identity))
            if outcome in (Outcome.FIRE, Outcome.HOLDOUT):
                marks[campaign.key] = Mark(answer.event_time, armed=False)
        elif mark is not None and _rearms(mark, answer, campaign, probability):
            marks[campaign.key] = Mark(mark.fired_ms, armed=True)
    return {**memory, **marks}, decisions


def holds(campaign: Campaign, probability: float) -> bool:
    """Tell whether a probability lies in the campaign's region."""
    return probability < campaign.threshold if campaign.rule == "below" else probability > campaign.threshold


def left(campaign: Campaign, probability: float) -> bool:
    """Tell whether a probability is out of the region by the hysteresis."""
    return probability >= campaign.rearm if campaign.rule == "below" else probability <= campaign.rearm


def applies(campaign: Campaign, answer: Answer) -> bool:
    """Tell whether the campaign looks at such rows of such users."""
    kind = "session_end" if answer.session_end else "event"
    return kind in campaign.at and (not campaign.user_stage or STAGES[answer.user_stage] in campaign.user_stage)


def _outcome(mark: Mark | None, answer: Answer, campaign: Campaign, salt: bytes) -> Outcome:
    if answer.degraded:
        return Outcome.DEGRADED
    if mark is not None:
        if answer.event_time < mark.fired_ms:
            return Outcome.OUT_OF_ORDER
        if answer.event_time - mark.fired_ms < campaign.cooldown_ms:
            return Outcome.COOLDOWN
        if not mark.armed:
            return Outcome.HYSTERESIS
    return Outcome.HOLDOUT if in_holdout(answer.user, campaign, salt) else Outcome.FIRE


def _rearms(mark: Mark, answer: Answer, campaign: Campaign, probability: float) -> bool:
    in_order = answer.event_time >= mark.fired_ms
    return not mark.armed and in_order and not answer.degraded and left(campaign, probability)


def memory_bytes(memory: Memory) -> bytes | None:
    """Return the table value of a memory; None for an empty one, which needs no table entry."""
    entries = (_ENTRY.pack(key, 2 * mark.fired_ms + mark.armed) for key, mark in sorted(memory.items()))
    return bytes([1]) + b"".join(entries) if memory else None


def memory_of(value: bytes | None) -> Memory:
    """Return the memory that a table value holds."""
    return {key: Mark(code >> 1, bool(code & 1)) for key, code in _ENTRY.iter_unpack(value[1:])} if value else {}
