"""Policy: a block's answers and its users' campaign memories in; what comes of each campaign and the new memories out.

No clock: times are event times, so a replay decides as the day itself did. A campaign fires when its probability lies
in its region, once per cooldown, and again only after the probability has left the region by the hysteresis. The same
in plain Python: tests/support/plain_policy.py, to which every decision is equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from model.contract.jit import jit
from model.contract.stages import STAGES
from worker.campaigns import Campaign, load_campaigns

SCOPES = ("category", "user")
NEVER = -1  # what is remembered of a campaign that never fired for the user

Flags: TypeAlias = npt.NDArray[np.bool_]
Numbers: TypeAlias = npt.NDArray[np.int64]
Codes: TypeAlias = npt.NDArray[np.uint8]

# What came of a rule at a row. A fire may yet be one of the holdout, who are remembered as if they were triggered.
NOTHING, FIRED, DEGRADED, OUT_OF_ORDER, COOLDOWN, HYSTERESIS, ARMED = range(7)


class Outcome(StrEnum):
    """What became of a campaign whose condition holds; all but FIRE are reasons of suppression."""

    FIRE = "fire"
    DEGRADED = "degraded"
    OUT_OF_ORDER = "out_of_order"
    COOLDOWN = "cooldown"
    HYSTERESIS = "hysteresis"
    HOLDOUT = "holdout"


SUPPRESSED = {
    DEGRADED: Outcome.DEGRADED,
    OUT_OF_ORDER: Outcome.OUT_OF_ORDER,
    COOLDOWN: Outcome.COOLDOWN,
    HYSTERESIS: Outcome.HYSTERESIS,
}


class Decision(NamedTuple):
    """One campaign whose condition holds for one answer."""

    campaign: Campaign
    outcome: Outcome
    probability: float
    trigger_id: str  # empty unless it fires


class Rules(NamedTuple):
    """C campaigns as columns."""

    below: Flags  # (C,)
    threshold: npt.NDArray[np.float64]  # (C,)
    rearm: npt.NDArray[np.float64]  # (C,)
    scope: Numbers  # (C,)
    stage: Numbers  # (C,)
    at: Flags  # (C, 2) at an event, at a session end
    user_stage: Flags  # (C, 6)
    cooldown_ms: Numbers  # (C,)


class Policy(NamedTuple):
    """The campaigns of an installation and the salt of its holdout."""

    campaigns: tuple[Campaign, ...]
    rules: Rules
    salt: bytes


class Rows(NamedTuple):
    """What the policy looks at: the answered rows (A,) of a block, in order."""

    slot: Numbers  # (A,) of the user
    event_time: Numbers  # (A,) ms
    session_end: Flags  # (A,)
    user_stage: Numbers  # (A,)
    reach: npt.NDArray[np.float32]  # (A, 2, 6): in the category, anywhere
    degraded: Flags  # (A,)


def load_policy(path: Path | None, salt: str) -> Policy:
    """Read the campaigns file; None reads the shipped one."""
    return policy_of(load_campaigns(path), salt)


def policy_of(campaigns: Sequence[Campaign], salt: str) -> Policy:
    """Make campaigns ready for deciding."""
    rules = Rules(
        np.array([campaign.rule == "below" for campaign in campaigns], bool),
        np.array([campaign.threshold for campaign in campaigns], "f8"),
        np.array([campaign.rearm for campaign in campaigns], "f8"),
        np.array([SCOPES.index(campaign.scope) for campaign in campaigns], "i8"),
        np.array([STAGES.index(campaign.stage) for campaign in campaigns], "i8"),
        np.array([[kind in campaign.at for kind in ("event", "session_end")] for campaign in campaigns], bool),
        np.array([[stage in (campaign.user_stage or STAGES) for stage in STAGES] for campaign in campaigns], bool),
        np.array([campaign.cooldown_ms for campaign in campaigns], "i8"),
    )
    shaped = rules._replace(at=rules.at.reshape(-1, 2), user_stage=rules.user_stage.reshape(-1, len(STAGES)))
    return Policy(tuple(campaigns), shaped, blake2b(salt.encode(), digest_size=32).digest())


def decide(policy: Policy, rows: Rows, memory: Numbers) -> Codes:
    """Decide on each campaign at each row, in order; return what came of it (A, C), and remember it.

    `memory` (U, C) holds by the users' slots 2 * time of the last fire + armed, or NEVER.
    """
    found = np.empty((len(rows.slot), len(policy.campaigns)), np.uint8)
    _decide(policy.rules, rows, memory, found)
    return found


@jit
def _decide(rules: Rules, rows: Rows, memory: Numbers, found: Codes) -> None:
    for row in range(len(rows.slot)):
        for rule in range(len(rules.below)):
            found[row, rule] = _decide_one(rules, rows, memory[rows.slot[row]], row, rule)


@jit
def _decide_one(rules: Rules, rows: Rows, memory: Numbers, row: int, rule: int) -> int:
    chance = np.float64(rows.reach[row, rules.scope[rule], rules.stage[rule]])
    time_ms, fired_ms, armed = rows.event_time[row], memory[rule] >> 1, memory[rule] & 1
    fired = memory[rule] != NEVER
    below, threshold, rearm = rules.below[rule], rules.threshold[rule], rules.rearm[rule]
    if not (chance < threshold if below else chance > threshold):
        left = chance >= rearm if below else chance <= rearm
        if fired and not armed and left and time_ms >= fired_ms and not rows.degraded[row]:
            memory[rule] |= 1
            return ARMED
        return NOTHING
    if not (rules.at[rule, np.int64(rows.session_end[row])] and rules.user_stage[rule, rows.user_stage[row]]):
        return NOTHING
    if rows.degraded[row]:
        return DEGRADED
    if fired and time_ms < fired_ms:
        return OUT_OF_ORDER
    if fired and time_ms - fired_ms < rules.cooldown_ms[rule]:
        return COOLDOWN
    if fired and not armed:
        return HYSTERESIS
    memory[rule] = 2 * time_ms
    return FIRED


def in_holdout(user: bytes, campaign: Campaign, salt: bytes) -> bool:
    """Draw whether a user belongs to a campaign's holdout; the same for ever under one salt."""
    draw = blake2b(campaign.name.encode() + b"\0" + user, digest_size=8, key=salt).digest()
    return int.from_bytes(draw, "big") < campaign.holdout * 2**64


def trigger_id(user: bytes, campaign: Campaign, event_time: int) -> str:
    """Name the one trigger that a user can get from a campaign within a window of its cooldown."""
    window = b"%d" % (event_time // campaign.cooldown_ms)
    return blake2b(b"\0".join((campaign.name.encode(), window, user)), digest_size=8).hexdigest()


def warm() -> None:
    """Compile what decides, or load it from Numba's cache; the first time it takes seconds."""
    one = np.zeros(1, np.int64)
    rows = Rows(one, one, one > 0, one, np.zeros((1, 2, len(STAGES)), np.float32), one > 0)
    decide(policy_of((), ""), rows, np.zeros((1, 0), np.int64))
