"""Policy: a user's campaign memory and one answer in; fired and suppressed campaigns, and the new memory, out.

No clock: times are event times, so a replay decides as the day itself did. A campaign fires when its probability lies
in its region, once per cooldown, and again only after the probability has left the region by the hysteresis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from hashlib import blake2b
from pathlib import Path
from struct import Struct
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from model.contract.errors import TableError
from model.contract.stages import STAGES
from worker.campaigns import Campaign, load_campaigns

SCOPES = ("category", "user")
MEMORY_VERSION = 1
RULE_BITS = 64
_ENTRY = Struct("<Iq")  # campaign key; 2 * time of the last fire + armed

Flags: TypeAlias = npt.NDArray[np.bool_]


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


class Outcome(StrEnum):
    """What became of a campaign whose condition holds; all but FIRE are reasons of suppression."""

    FIRE = "fire"
    DEGRADED = "degraded"
    OUT_OF_ORDER = "out_of_order"
    COOLDOWN = "cooldown"
    HYSTERESIS = "hysteresis"
    HOLDOUT = "holdout"


class Decision(NamedTuple):
    """One campaign whose condition holds for one answer."""

    campaign: Campaign
    outcome: Outcome
    probability: float
    trigger_id: str  # empty unless it fires


class Rule(NamedTuple):
    """A campaign made ready for deciding."""

    campaign: Campaign
    key: int
    scope: int
    stage: int
    kinds: tuple[bool, bool]  # at an event, at a session end
    stages: tuple[bool, ...]  # (6,) of the user
    cooldown_ms: int


class Columns(NamedTuple):
    """C rules as columns, for whole blocks."""

    below: Flags  # (C,)
    threshold: npt.NDArray[np.float64]  # (C,)
    rearm: npt.NDArray[np.float64]  # (C,)
    scope: npt.NDArray[np.int64]  # (C,)
    stage: npt.NDArray[np.int64]  # (C,)
    kinds: Flags  # (2, C)
    stages: Flags  # (6, C)


class Policy(NamedTuple):
    """The campaigns of an installation and the salt of its holdout."""

    rules: tuple[Rule, ...]
    columns: Columns
    salt: bytes


def load_policy(path: Path | None, salt: str) -> Policy:
    """Read the campaigns file; None reads the shipped one."""
    return policy_of(load_campaigns(path), salt)


def policy_of(campaigns: Sequence[Campaign], salt: str) -> Policy:
    """Make campaigns ready for deciding."""
    rules = tuple(map(_rule, campaigns))
    columns = Columns(
        np.array([campaign.rule == "below" for campaign in campaigns], bool),
        np.array([campaign.threshold for campaign in campaigns], "f8"),
        np.array([campaign.rearm for campaign in campaigns], "f8"),
        np.array([rule.scope for rule in rules], "i8"),
        np.array([rule.stage for rule in rules], "i8"),
        np.array([rule.kinds for rule in rules], bool).reshape(-1, 2).T,
        np.array([rule.stages for rule in rules], bool).reshape(-1, len(STAGES)).T,
    )
    return Policy(rules, columns, blake2b(salt.encode(), digest_size=32).digest())


def _rule(campaign: Campaign) -> Rule:
    return Rule(
        campaign,
        campaign.key,
        SCOPES.index(campaign.scope),
        STAGES.index(campaign.stage),
        ("event" in campaign.at, "session_end" in campaign.at),
        tuple(not campaign.user_stage or stage in campaign.user_stage for stage in STAGES),
        campaign.cooldown_ms,
    )


def candidates(
    policy: Policy,
    session_end: Flags,
    user_stage: npt.NDArray[Any],
    reach: npt.NDArray[Any],
    degraded: Flags,
    fired: npt.NDArray[np.uint64],
) -> Flags:
    """Mark the rules that `decide` must see of each row (A, C): it holds, or it fired and may re-arm.

    Of the others it would say nothing and leave the memory as it is. `fired` (A,) are the users' `unarmed` rules.
    """
    of = policy.columns
    chance = reach[:, of.scope, of.stage].astype("f8")  # (A, C)
    applies = of.kinds[session_end.astype("i8")] & of.stages[user_stage]  # (A, C)
    holds = np.where(of.below, chance < of.threshold, chance > of.threshold) & applies  # (A, C)
    left = np.where(of.below, chance >= of.rearm, chance <= of.rearm)  # (A, C)
    waits = (fired[:, None] >> (np.arange(len(policy.rules), dtype=np.uint64) % RULE_BITS)) & np.uint64(1)  # (A, C)
    flags: Flags = holds | (left & (waits != 0) & ~degraded[:, None])
    return flags


def unarmed(memory: Memory, policy: Policy) -> int:
    """Return the rules that wait to be armed again, a bit each; where there are more than bits, several share one."""
    bits = 0
    for number, rule in enumerate(policy.rules):
        mark = memory.get(rule.key)
        if mark is not None and not mark.armed:
            bits |= 1 << number % RULE_BITS
    return bits


def decide(
    memory: Memory, answer: Answer, policy: Policy, rules: Sequence[Rule] | None = None
) -> tuple[Memory, list[Decision]]:
    """Decide campaigns for one answer, all or some; an unchanged memory comes back as the same object."""
    decisions: list[Decision] = []
    marks: dict[int, Mark] = {}
    for rule in policy.rules if rules is None else rules:
        probability = float(answer.reach[rule.scope][rule.stage])  # a float32 would be compared in float32
        mark = memory.get(rule.key)
        if rule.campaign.holds(probability):
            if not (rule.kinds[answer.session_end] and rule.stages[answer.user_stage]):
                continue
            outcome = _outcome(mark, answer, rule, policy.salt)
            identity = trigger_id(answer.user, rule.campaign, answer.event_time) if outcome is Outcome.FIRE else ""
            decisions.append(Decision(rule.campaign, outcome, probability, identity))
            if outcome in (Outcome.FIRE, Outcome.HOLDOUT):
                marks[rule.key] = Mark(answer.event_time, armed=False)
        elif mark is not None and _rearms(mark, answer, rule.campaign, probability):
            marks[rule.key] = Mark(mark.fired_ms, armed=True)
    return ({**memory, **marks} if marks else memory), decisions


def _outcome(mark: Mark | None, answer: Answer, rule: Rule, salt: bytes) -> Outcome:
    if answer.degraded:
        return Outcome.DEGRADED
    if mark is not None:
        if answer.event_time < mark.fired_ms:
            return Outcome.OUT_OF_ORDER
        if answer.event_time - mark.fired_ms < rule.cooldown_ms:
            return Outcome.COOLDOWN
        if not mark.armed:
            return Outcome.HYSTERESIS
    return Outcome.HOLDOUT if in_holdout(answer.user, rule.campaign, salt) else Outcome.FIRE


def _rearms(mark: Mark, answer: Answer, campaign: Campaign, probability: float) -> bool:
    in_order = answer.event_time >= mark.fired_ms
    return not mark.armed and in_order and not answer.degraded and campaign.left(probability)


def in_holdout(user: bytes, campaign: Campaign, salt: bytes) -> bool:
    """Draw whether a user belongs to a campaign's holdout; the same for ever under one salt."""
    draw = blake2b(campaign.name.encode() + b"\0" + user, digest_size=8, key=salt).digest()
    return int.from_bytes(draw, "big") < campaign.holdout * 2**64


def trigger_id(user: bytes, campaign: Campaign, event_time: int) -> str:
    """Name the one trigger that a user can get from a campaign within a window of its cooldown."""
    window = b"%d" % (event_time // campaign.cooldown_ms)
    return blake2b(b"\0".join((campaign.name.encode(), window, user)), digest_size=8).hexdigest()


def memory_bytes(memory: Memory) -> bytes | None:
    """Return the table value of a memory; None for an empty one, which needs no table entry."""
    if not memory:
        return None
    entries = (_ENTRY.pack(key, 2 * mark.fired_ms + mark.armed) for key, mark in sorted(memory.items()))
    return bytes([MEMORY_VERSION]) + b"".join(entries)


def memory_of(value: bytes | None) -> Memory:
    """Return the memory that a table value holds."""
    if value is None:
        return NO_MEMORY
    if value[:1] != bytes([MEMORY_VERSION]) or len(value) % _ENTRY.size != 1:
        raise TableError(
            f"a campaign memory of {len(value)} bytes and version {value[0] if value else 'none'} was found, version "
            f"{MEMORY_VERSION} is expected; run the release that wrote it, or start with a new app_id"
        )
    return {key: Mark(code >> 1, bool(code & 1)) for key, code in _ENTRY.iter_unpack(value[1:])}
