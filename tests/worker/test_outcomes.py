"""What came of predictions and campaigns is counted once their time has passed, and not before."""

from __future__ import annotations

import itertools
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.contract.events import TYPES
from model.contract.rows import DAY_MS, NEW, Block
from model.contract.stages import NO_STAGE, STAGES
from tests.support.plain_outcomes import PlainOutcomes
from worker.campaigns import Campaign
from worker.metrics import Metrics
from worker.outcomes import OPEN_PREDICTIONS, Outcomes
from worker.policy import NEVER, in_holdout, policy_of
from worker.records import Answers

NUDGE = Campaign(name="nudge", rule="below", stage=STAGES[3], scope="user", threshold=0.3, holdout=0.5)
POLICY = policy_of([NUDGE], "salt")
HOUR = 3_600_000
SLOTS: dict[bytes, int] = defaultdict(itertools.count().__next__)  # by user
Row = tuple[str, int, str, int, int]  # user, time, type, stage of the row, category


def seen(
    outcomes: Outcomes,
    *rows: Row,
    chance: float | list[float] = 0.25,
    memory: int = NEVER,
    degraded: bool | list[bool] = False,
    places: list[int] | None = None,
) -> None:
    users, times, types, stages, categories = zip(*rows, strict=True)
    n = len(rows)
    keys = [user.encode() for user in users]
    slots = np.array([SLOTS[key] for key in keys])
    codes = np.array([TYPES.index(name) for name in types], "u1")
    block = Block(
        np.arange(n), np.arange(n), np.arange(n), np.full(n, NEW), np.array(times), codes, np.array(stages, "u1"),
        np.zeros(n, "u1"), np.array(categories, "u4"),
    )  # fmt: skip
    answers = Answers(
        keys, np.arange(n), np.array(times), np.array(times), codes, np.zeros(n, "u1"), [None] * n, np.ones(n, int),
        np.broadcast_to(np.reshape(chance, (-1, 1, 1)), (n, 2, 6)).astype("f4"), np.zeros((n, 20), "f4"),
        np.broadcast_to(degraded, n),
    )  # fmt: skip
    outcomes.observe(answers, block, np.full((n, 1), memory), slots, np.array(places or [0] * n, "i4"))


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def outcomes(metrics: Metrics) -> Outcomes:
    return Outcomes(DAY_MS, POLICY, metrics)


def counts(metrics: Metrics, name: str, scope: str) -> list[float]:
    return [
        metrics.registry.get_sample_value(f"funnelcast_reach_{name}_total", {"scope": scope, "stage": stage})
        for stage in STAGES
    ]


def resolved(metrics: Metrics) -> float | None:
    return metrics.registry.get_sample_value("funnelcast_reach_resolved_total")


def test_a_prediction_is_compared_with_the_day_after_it(outcomes: Outcomes, metrics: Metrics) -> None:
    seen(outcomes, ("ann", 0, "product_view", 0, 7))
    seen(outcomes, ("ann", HOUR, "product_view", 1, 7), ("ann", 2 * HOUR, "cart_add", 3, 8))
    seen(outcomes, ("bob", DAY_MS, "product_view", 0, 7))
    assert resolved(metrics) == 0  # a row exactly at the end of the horizon still counts
    seen(outcomes, ("ann", DAY_MS + 1, "order", 4, 7))
    assert resolved(metrics) == 1
    assert counts(metrics, "observed", "category") == [1, 1, 0, 0, 0, 0]
    assert counts(metrics, "observed", "user") == [1, 1, 1, 1, 0, 0]
    assert counts(metrics, "expected", "user") == pytest.approx([0.25] * 6)


def test_silence_reaches_nothing(outcomes: Outcomes, metrics: Metrics) -> None:
    seen(outcomes, ("ann", 0, "product_view", 0, 7), ("ann", HOUR, "session_end", NO_STAGE, 7))
    seen(outcomes, ("bob", 2 * DAY_MS, "product_view", 0, 7))
    assert counts(metrics, "observed", "user") == [0] * 6
    assert counts(metrics, "expected", "user") == pytest.approx([0.25] * 6)


def test_a_session_end_that_is_answered_by_hindsight_is_no_prediction(outcomes: Outcomes, metrics: Metrics) -> None:
    seen(outcomes, ("ann", 0, "session_end", NO_STAGE, 7), ("ann", 3 * DAY_MS, "product_view", 0, 7))  # of a backlog
    seen(outcomes, ("ann", 4 * DAY_MS, "cart_add", 3, 7), ("bob", 5 * DAY_MS, "product_view", 0, 7))
    assert resolved(metrics) == 1
    assert counts(metrics, "observed", "user") == [1, 1, 1, 1, 0, 0]


def test_base_rates_are_no_predictions(outcomes: Outcomes, metrics: Metrics) -> None:
    seen(outcomes, ("ann", 0, "product_view", 0, 7), degraded=True)
    seen(outcomes, ("bob", 2 * DAY_MS, "product_view", 0, 7))
    assert resolved(metrics) == 0


def test_the_predictions_that_are_followed_are_bounded(outcomes: Outcomes, metrics: Metrics) -> None:
    seen(outcomes, *((f"user{n}", n, "product_view", 0, 7) for n in range(OPEN_PREDICTIONS + 50)))
    seen(outcomes, ("bob", 3 * DAY_MS, "product_view", 0, 7))
    assert resolved(metrics) == OPEN_PREDICTIONS


@pytest.mark.parametrize(("hours", "counted"), [(1, 1), (24, 1), (25, 0), (-1, 0)])
def test_an_order_counts_for_a_campaign_that_decided_within_the_day(
    outcomes: Outcomes, metrics: Metrics, hours: int, counted: int
) -> None:
    fired = 2 * 100 * HOUR
    for user in ("ann", "bob", "cid", "dan"):
        seen(outcomes, (user, (100 + hours) * HOUR, "order", 4, 7), memory=fired)
    held = sum(in_holdout(user, NUDGE, POLICY.salt) for user in (b"ann", b"bob", b"cid", b"dan"))
    orders = [
        metrics.registry.get_sample_value("funnelcast_campaign_orders_total", {"campaign": "nudge", "group": group})
        for group in ("treatment", "holdout")
    ]
    assert [count or 0 for count in orders] == [counted * (4 - held), counted * held]


def test_an_order_without_a_campaign_counts_for_none(outcomes: Outcomes, metrics: Metrics) -> None:
    seen(outcomes, ("ann", 0, "order", 4, 7))
    assert "nudge" not in metrics.page().decode()


STEP_HOURS, MOST = 5, 3
CLICKS = st.tuples(
    st.sampled_from("abcdef"),
    st.integers(0, 40).map(lambda step: step * STEP_HOURS * HOUR),
    st.sampled_from(["product_view", "session_end", "order"]),
    st.sampled_from([*range(len(STAGES)), NO_STAGE]),
    st.integers(7, 8),
    st.integers(0, 1),  # partition
    st.booleans(),  # degraded
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(CLICKS, min_size=1, max_size=12), max_size=8))
def test_predictions_are_followed_as_plain_python_does(blocks: list[list[tuple[Any, ...]]]) -> None:
    metrics, plain = Metrics(), [PlainOutcomes(MOST, DAY_MS) for _ in range(2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("worker.outcomes.OPEN_PREDICTIONS", MOST)
        outcomes = Outcomes(DAY_MS, POLICY, metrics, 2)
        for rows in blocks:
            places, degraded = [row[5] for row in rows], [row[6] for row in rows]
            chances = [(1 + number) / 16 for number in range(len(rows))]
            named = [(f"{row[0]}{row[5]}", *row[1:5]) for row in rows]
            seen(outcomes, *named, chance=chances, degraded=degraded, places=places)
            whole = [(*row, *rest) for row, *rest in zip(named, chances, degraded, strict=True)]
            for place, one in enumerate(plain):
                one.observe(list(itertools.compress(whole, [at == place for at in places])))
    assert resolved(metrics) == sum(one.resolved for one in plain)
    for scope, name in enumerate(("category", "user")):
        assert counts(metrics, "observed", name) == sum(one.observed[scope] for one in plain).tolist()
        assert counts(metrics, "expected", name) == pytest.approx(sum(one.expected[scope] for one in plain).tolist())
