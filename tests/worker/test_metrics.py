"""Metrics count what they are told, in base units, and name no user."""

from __future__ import annotations

import re

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from model.contract.events import TYPES
from model.contract.rows import APPLIED, DUPLICATE, LATE
from worker.histograms import Histogram
from worker.metrics import Metrics


def value(metrics: Metrics, name: str, /, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_a_histogram_of_arrays_counts_like_prometheus() -> None:
    registry = CollectorRegistry()
    histogram = Histogram("wait_seconds", "Wait", (0.1, 0.5, 1), registry)
    histogram.observe(np.array([0.1, 0.2, 0.5, 3.0]))
    histogram.observe(0.05)
    histogram.observe([])
    counts = {
        bound: registry.get_sample_value("wait_seconds_bucket", {"le": bound}) for bound in ("0.1", "0.5", "1", "+Inf")
    }
    assert counts == {"0.1": 2, "0.5": 4, "1": 4, "+Inf": 5}
    assert registry.get_sample_value("wait_seconds_count") == 5
    assert registry.get_sample_value("wait_seconds_sum") == pytest.approx(3.85)


def test_a_chunk_is_counted_by_what_became_of_its_records() -> None:
    metrics = Metrics()
    verdicts = np.array([APPLIED, DUPLICATE, LATE, DUPLICATE, APPLIED], "u1")
    metrics.taken({2: 8}, verdicts, ["future", "invalid_json", "future"])
    assert value(metrics, "funnelcast_records_consumed_total", partition="2") == 8
    assert value(metrics, "funnelcast_events_late_total") == 1
    assert value(metrics, "funnelcast_events_duplicate_total") == 2
    assert value(metrics, "funnelcast_records_rejected_total", reason="future") == 2
    assert value(metrics, "funnelcast_records_rejected_total", reason="invalid_json") == 1


def test_decisions_are_triggers_or_suppressed_with_their_reason() -> None:
    metrics = Metrics()
    metrics.decided({("nudge", "fire"): 1, ("nudge", "cooldown"): 2, ("nudge", "holdout"): 1})
    assert value(metrics, "funnelcast_triggers_emitted_total", campaign="nudge") == 1
    assert value(metrics, "funnelcast_triggers_suppressed_total", campaign="nudge", reason="cooldown") == 2
    assert value(metrics, "funnelcast_triggers_suppressed_total", campaign="nudge", reason="fire") is None


def test_answers_transactions_and_failures_are_counted() -> None:
    metrics = Metrics()
    metrics.answered(10, 3)
    metrics.transaction(0.03)
    metrics.committed(4000, 5, 1)
    metrics.inference_failed()
    metrics.identify("taobao", "1", "ab")
    assert value(metrics, "funnelcast_stage_probabilities_emitted_total") == 10
    assert value(metrics, "funnelcast_stage_probabilities_degraded_total") == 3
    assert value(metrics, "funnelcast_transactions_committed_total") == 1
    assert value(metrics, "funnelcast_transaction_seconds_sum") == 0.03
    assert value(metrics, "funnelcast_changelog_bytes_total") == 4000
    assert value(metrics, "funnelcast_queue_depth_chunks", partition="1") == 5
    assert value(metrics, "funnelcast_inference_failures_total") == 1
    assert value(metrics, "funnelcast_model_info", name="taobao", version="1", sha256="ab") == 1


def test_the_gauges_of_a_lost_partition_go_and_the_others_stay() -> None:
    metrics = Metrics()
    for partition in ("1", "2"):
        metrics.lag.labels(partition).set(7)
    metrics.forget_partition(1)
    metrics.forget_partition(9)
    assert value(metrics, "funnelcast_consumer_lag_messages", partition="1") is None
    assert value(metrics, "funnelcast_consumer_lag_messages", partition="2") == 7


def test_two_instances_count_apart() -> None:
    one, two = Metrics(), Metrics()
    one.answered(1, 0)
    assert value(two, "funnelcast_stage_probabilities_emitted_total") == 0


def test_every_name_has_the_prefix_a_unit_or_noun_and_a_text() -> None:
    families = [family for family in text_string_to_metric_families(Metrics().page().decode()) if family.name]
    ours = [family for family in families if not family.name.startswith("process_")]
    assert len(ours) >= 20
    for family in ours:
        assert re.fullmatch(r"funnelcast_[a-z0-9_]+", family.name)
        assert family.documentation
        assert not re.search(r"_(ms|millis|user_id)\b", family.name)


def test_answers_are_counted_by_type_stage_and_probability() -> None:
    metrics = Metrics()
    view, order, end = (TYPES.index(name) for name in ("product_view", "order", "session_end"))
    reach = np.full((4, 2, 6), 0.25, "f4")
    degraded = np.array([False, False, False, True])
    metrics.answers(np.array([view, view, order, end], "u1"), np.array([1, 1, 4, 4], "u1"), reach, degraded)
    assert value(metrics, "funnelcast_events_answered_total", type="product_view") == 2
    assert value(metrics, "funnelcast_events_answered_total", type="order") == 1
    assert value(metrics, "funnelcast_events_answered_total", type="refund") == 0
    assert value(metrics, "funnelcast_sessions_ended_total", stage="purchase") == 1
    labels = {"scope": "user", "stage": "intent"}
    assert value(metrics, "funnelcast_reach_probability_count", **labels) == 3
    assert value(metrics, "funnelcast_reach_probability_sum", **labels) == pytest.approx(0.75)
    assert value(metrics, "funnelcast_reach_probability_bucket", le="0.2", **labels) == 0
    assert value(metrics, "funnelcast_reach_probability_bucket", le="0.3", **labels) == 3


def test_counters_of_known_labels_begin_at_zero() -> None:
    metrics = Metrics()
    metrics.expect_campaigns(["nudge", "rescue"], ["holdout", "cooldown"])
    metrics.expect_partition(3)
    assert value(metrics, "funnelcast_triggers_suppressed_total", campaign="rescue", reason="cooldown") == 0
    assert value(metrics, "funnelcast_campaign_orders_total", campaign="rescue", group="holdout") == 0
    assert value(metrics, "funnelcast_records_consumed_total", partition="3") == 0
    assert value(metrics, "funnelcast_records_rejected_total", reason="future") == 0
