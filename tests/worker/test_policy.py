"""A campaign fires once per cooldown, re-arms by its hysteresis, spares the holdout, and replays the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.contract.errors import TableError
from model.contract.stages import STAGES, Stage
from tests.support import plain_policy
from tests.support.deciding import columns, decide, decide_all
from tests.support.plain_policy import NO_MEMORY, Answer, Mark, Memory, memory_bytes, memory_of
from worker.campaigns import HOUR_MS, Campaign
from worker.memories import Memories
from worker.metrics import Metrics
from worker.policy import SCOPES, Decision, Outcome, Policy, in_holdout, policy_of
from worker.triggers import Triggers

AWARENESS, INTENT = 0, STAGES.index(Stage.INTENT)
START = 1_511_544_070_000


def campaign(**changes: Any) -> Campaign:
    fields: dict[str, Any] = {
        "rule": "below",
        "stage": Stage.INTENT,
        "scope": "category",
        "threshold": 0.3,
        "holdout": 0.0,
    }
    return Campaign(**{"name": "nudge", **fields, **changes})


def answer(probability: float, at_hours: float = 0.0, **changes: Any) -> Answer:
    """Return an answer whose probabilities are all alike."""
    reach = [[probability] * 6] * 2
    return Answer(b"u1", START + round(at_hours * HOUR_MS), False, AWARENESS, reach, False)._replace(**changes)


def outcomes(policy: Policy, answers: list[Answer], memory: Memory = NO_MEMORY) -> list[list[Outcome]]:
    found = []
    for one in answers:
        memory, decisions = decide(memory, one, policy)
        found.append([decision.outcome for decision in decisions])
    return found


def test_below_fires_below_and_above_fires_above_the_threshold_only() -> None:
    below, above = policy_of([campaign()], "s"), policy_of([campaign(rule="above", threshold=0.7)], "s")
    for probability, fires_below, fires_above in [(0.29, 1, 0), (0.3, 0, 0), (0.7, 0, 0), (0.71, 0, 1)]:
        assert len(decide(NO_MEMORY, answer(probability), below)[1]) == fires_below
        assert len(decide(NO_MEMORY, answer(probability), above)[1]) == fires_above


def test_a_campaign_looks_at_its_own_stage_and_scope() -> None:
    reach = [[0.9] * 6, [0.9] * 6]
    reach[0][INTENT] = 0.1
    one = answer(0.9, reach=reach)
    for stage in STAGES:
        for scope in SCOPES:
            fires = stage is Stage.INTENT and scope == "category"
            policy = policy_of([campaign(stage=stage, scope=scope)], "s")
            assert [d.outcome for d in decide(NO_MEMORY, one, policy)[1]] == [Outcome.FIRE] * fires


def test_a_campaign_keeps_to_its_rows_and_stages() -> None:
    policy = policy_of([campaign(at=("session_end",), user_stage=(Stage.INTENT, Stage.PURCHASE))], "s")
    for session_end in (False, True):
        for stage in range(6):
            one = answer(0.1, session_end=session_end, user_stage=stage)
            assert len(decide(NO_MEMORY, one, policy)[1]) == (session_end and stage in (3, 4))


def test_a_fire_needs_the_cooldown_and_then_a_way_out_of_the_region() -> None:
    policy = policy_of([campaign(cooldown_hours=2, hysteresis=0.1)], "s")
    story = [
        (answer(0.1, 0), [Outcome.FIRE]),
        (answer(0.1, 1.99), [Outcome.COOLDOWN]),
        (answer(0.1, 2.0), [Outcome.HYSTERESIS]),
        (answer(0.39, 3), []),  # out of the region, but not by the hysteresis
        (answer(0.1, 4), [Outcome.HYSTERESIS]),
        (answer(0.41, 5), []),
        (answer(0.1, 6), [Outcome.FIRE]),
        (answer(0.5, 6.5), []),
        (answer(0.1, 7), [Outcome.COOLDOWN]),  # armed again, and still cooling
        (answer(0.1, 8), [Outcome.FIRE]),
    ]
    assert outcomes(policy, [one for one, _ in story]) == [expected for _, expected in story]


def test_a_user_re_arms_at_rows_that_the_campaign_does_not_fire_at() -> None:
    policy = policy_of([campaign(cooldown_hours=1, at=("session_end",), user_stage=(Stage.AWARENESS,))], "s")
    end = {"session_end": True}
    answers = [answer(0.1, 0, **end), answer(0.6, 1, user_stage=4), answer(0.1, 2, **end)]
    assert outcomes(policy, answers) == [[Outcome.FIRE], [], [Outcome.FIRE]]


def test_an_event_older_than_the_last_fire_neither_fires_nor_re_arms() -> None:
    policy = policy_of([campaign(cooldown_hours=1)], "s")
    assert outcomes(policy, [answer(0.1, 5), answer(0.1, 4), answer(0.9, 4), answer(0.1, 7)]) == [
        [Outcome.FIRE],
        [Outcome.OUT_OF_ORDER],
        [],
        [Outcome.HYSTERESIS],
    ]


def test_a_degraded_score_never_fires_and_changes_no_memory() -> None:
    policy = policy_of([campaign(cooldown_hours=1)], "s")
    memory, decisions = decide(NO_MEMORY, answer(0.1, degraded=True), policy)
    assert memory == NO_MEMORY
    assert [decision.outcome for decision in decisions] == [Outcome.DEGRADED]
    answers = [answer(0.1, 0), answer(0.9, 1, degraded=True), answer(0.1, 2)]
    assert outcomes(policy, answers) == [[Outcome.FIRE], [], [Outcome.HYSTERESIS]]


def test_the_holdout_is_never_triggered_and_remembered_as_if() -> None:
    answers = [answer(0.1, 0), answer(0.1, 1), answer(0.9, 24), answer(0.1, 30)]
    treated, held = policy_of([campaign()], "s"), policy_of([campaign(holdout=1.0)], "s")
    fire, cool, hold = [Outcome.FIRE], [Outcome.COOLDOWN], [Outcome.HOLDOUT]
    assert outcomes(treated, answers) == [fire, cool, [], fire]
    assert outcomes(held, answers) == [hold, cool, [], hold]
    assert decide(NO_MEMORY, answers[0], treated)[0] == decide(NO_MEMORY, answers[0], held)[0]


def test_the_holdout_has_its_share_and_depends_on_campaign_and_salt() -> None:
    users = [b"user-%d" % number for number in range(4000)]

    def held(name: str, salt: bytes) -> list[bool]:
        return [in_holdout(user, campaign(name=name, holdout=0.1), salt) for user in users]

    draws = [held("a", b"1"), held("a", b"2"), held("b", b"1")]
    assert all(320 < sum(draw) < 480 for draw in draws)
    assert draws[0] == held("a", b"1")
    both = [sum(x and y for x, y in zip(draws[0], other, strict=True)) for other in draws[1:]]
    assert all(count < 80 for count in both)


def test_the_share_of_the_holdout_may_grow_without_moving_anybody_out() -> None:
    users = [b"user-%d" % number for number in range(1000)]
    small, large = campaign(holdout=0.1), campaign(holdout=0.2)
    assert all(in_holdout(user, large, b"s") for user in users if in_holdout(user, small, b"s"))


def test_nothing_to_say_changes_no_memory() -> None:
    policy = policy_of([campaign()], "s")
    triggers = Triggers(policy, Metrics())
    changed = []
    for one in (answer(0.9), answer(0.1), answer(0.1, 1)):
        triggers.of(columns([one]), np.zeros(1, np.int64))
        changed.append(list(triggers.changes()))
    assert changed == [[], [0], []]


CAMPAIGNS = st.lists(
    st.builds(
        campaign,
        name=st.sampled_from(["a", "b", "c"]),
        rule=st.just("below"),
        stage=st.sampled_from(STAGES),
        scope=st.sampled_from(SCOPES),
        threshold=st.sampled_from([0.2, 0.3, 0.5]),
        hysteresis=st.sampled_from([0.0, 0.05, 0.3]),
        cooldown_hours=st.sampled_from([0.001, 0.5, 3.0]),
        holdout=st.sampled_from([0.0, 0.5, 1.0]),
        at=st.sampled_from([("event",), ("session_end",), ("event", "session_end")]),
        user_stage=st.sampled_from([(), (Stage.AWARENESS,), (Stage.INTENT, Stage.PURCHASE)]),
    )
    | st.builds(
        campaign,
        name=st.sampled_from(["d", "e"]),
        rule=st.just("above"),
        threshold=st.sampled_from([0.5, 0.7]),
        cooldown_hours=st.sampled_from([0.25, 2.0]),
    ),
    max_size=4,
    unique_by=lambda one: one.name,
)
ANSWERS = st.lists(
    st.builds(
        Answer,
        user=st.sampled_from([b"u1", b"u2", b"u3"]),
        event_time=st.integers(START, START + 12 * HOUR_MS),
        session_end=st.booleans(),
        user_stage=st.integers(0, 5),
        reach=st.lists(st.lists(st.floats(0, 1, width=32), min_size=6, max_size=6), min_size=2, max_size=2),
        degraded=st.sampled_from([False, False, False, True]),
    ),
    max_size=40,
)


def play(policy: Policy, answers: list[Answer]) -> list[list[Decision]]:
    """Decide every answer, memories going through their bytes each time."""
    table: dict[bytes, bytes | None] = {}
    found = []
    for one in answers:
        memory, decisions = decide(memory_of(table.get(one.user)), one, policy)
        table[one.user] = memory_bytes(memory)
        found.append(decisions)
    return found


@settings(max_examples=200, deadline=None)
@given(CAMPAIGNS, ANSWERS)
def test_a_user_never_triggers_twice_within_the_cooldown(campaigns: list[Campaign], answers: list[Answer]) -> None:
    policy = policy_of(campaigns, "s")
    last: dict[tuple[bytes, str], int] = {}
    identities: list[str] = []
    for one, decisions in zip(answers, play(policy, answers), strict=True):
        for decision in decisions:
            if decision.outcome is not Outcome.FIRE:
                assert decision.trigger_id == ""
                continue
            key = one.user, decision.campaign.name
            assert one.event_time - last.get(key, -(1 << 60)) >= decision.campaign.cooldown_ms
            assert not in_holdout(one.user, decision.campaign, policy.salt)
            assert not one.degraded
            last[key] = one.event_time
            identities.append(decision.trigger_id)
    assert len(set(identities)) == len(identities)


@settings(max_examples=200, deadline=None)
@given(CAMPAIGNS, ANSWERS, st.integers(1, 8))
def test_blocks_of_any_size_decide_and_remember_as_plain_python_does(
    campaigns: list[Campaign], answers: list[Answer], size: int
) -> None:
    policy = policy_of(campaigns, "s")
    plain: dict[bytes, Memory] = {}
    memories: dict[bytes, Memory] = {}
    for begin in range(0, len(answers), size):
        block, expected = answers[begin : begin + size], []
        for one in block:
            plain[one.user], decisions = plain_policy.decide(plain.get(one.user, NO_MEMORY), one, policy)
            expected.append(decisions)
        assert decide_all(policy, block, memories) == expected
        assert memories == {user: memory for user, memory in plain.items() if memory}


def test_a_float32_probability_decides_like_the_same_number_as_float() -> None:
    policy = policy_of([campaign(threshold=0.3)], "s")
    nearest = np.full((1, 2, 6), 0.3, "f4")  # a little above 0.3
    assert decide(NO_MEMORY, answer(0, reach=nearest[0]), policy)[1] == []


@given(st.dictionaries(st.integers(0, 2**32 - 1), st.builds(Mark, st.integers(0, 2**43), st.booleans()), max_size=9))
def test_memories_survive_their_bytes_those_of_campaigns_that_are_gone_too(memory: dict[int, Mark]) -> None:
    memories = Memories(policy_of([campaign()], "s"))
    memories.load(3, memory_bytes(memory | {campaign().key: Mark(START, armed=True)}))
    assert memories.value(3) == memory_bytes(memory | {campaign().key: Mark(START, armed=True)})
    memories.load(5, memory_bytes(memory))
    assert memories.value(5) == memory_bytes(memory)
    memories.drop(np.array([3, 5]))
    assert memories.value(3) is memories.value(5) is memories.value(900) is None


@pytest.mark.parametrize("value", [b"", b"\x02", b"\x01short"])
def test_memories_of_another_version_are_refused(value: bytes) -> None:
    with pytest.raises(TableError, match="version 1 is expected"):
        Memories(policy_of([], "s")).load(0, value)
