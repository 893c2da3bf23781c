"""Metrics: counts and durations from every room in, Prometheus samples out; base units, no user ids.

Each `Metrics` has a registry of its own, so a test counts from zero.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry, Counter, Gauge, Info, generate_latest
from prometheus_client.process_collector import ProcessCollector

from model.contract.events import SESSION_END, TYPES
from model.contract.rows import DUPLICATE, LATE
from model.contract.stages import STAGES
from worker.envelopes import Reason
from worker.histograms import SCOPES, Histogram, ReachHistogram

# Upper bounds of the histogram buckets. The end-to-end target is p50 40 ms and p99 100 ms.
END_TO_END_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
WORK_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10)
USERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
GROUPS = ("treatment", "holdout")
FIRST_TYPE = 2  # pad and unknown are no events
EXPLAINED = ("published", "busy", "long", "failed")
LATEST_KEPT = 20  # triggers that the console shows


class LatestTrigger(NamedTuple):
    """A trigger as the console shows it; never a metric, which would name a user."""

    user_id: str
    campaign: str
    stage: str
    scope: str
    rule: str
    probability: float
    threshold: float
    event_time: int


class Metrics:
    """Everything that the worker counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.latest_triggers: deque[LatestTrigger] = deque(maxlen=LATEST_KEPT)
        ProcessCollector(registry=self.registry)
        self._count_the_flow()
        self._gauge_the_worker()
        self._count_what_is_said()
        self._show_zeros()

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"funnelcast_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"funnelcast_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, bounds: Sequence[float]) -> Histogram:
        return Histogram(f"funnelcast_{name}", text, bounds, self.registry)

    def _count_the_flow(self) -> None:
        """From the source record to the commit of its answer."""
        self.consumed = self._counter("records_consumed", "Source records taken, by partition", "partition")
        self.rejected = self._counter(
            "records_rejected", "Source records that became dead letters, by reason", "reason"
        )
        self.late = self._counter("events_late", "Events older than the lateness bound")
        self.duplicates = self._counter("events_duplicate", "Events whose message id was seen before")
        self.emitted = self._counter("stage_probabilities_emitted", "Stage-probability records, session ends included")
        self.degraded = self._counter(
            "stage_probabilities_degraded", "Stage-probability records that carry the base rate"
        )
        self.shed = self._counter("answers_shed", "Answers with the base rate because scores would come too late")
        self.triggers = self._counter("triggers_emitted", "Trigger records, by campaign", "campaign")
        self.suppressed = self._counter("triggers_suppressed", "Triggers withheld, by reason", "campaign", "reason")
        self.transactions = self._counter("transactions_committed", "Kafka transactions committed")
        self.transaction_seconds = self._histogram(
            "transaction_seconds", "Begin to commit of a transaction", WORK_SECONDS
        )
        self.changelog_bytes = self._counter("changelog_bytes", "Keys and values written to the table's changelog")
        self.queue_depth = self._gauge(
            "queue_depth_chunks", "Fetched chunks that wait for their transaction", "partition"
        )
        self.batch_users = self._histogram("batch_users", "Users in one micro-batch", USERS)
        self.batch_wait_seconds = self._histogram(
            "batch_wait_seconds", "Wait of the oldest of a micro-batch", WORK_SECONDS
        )
        self.batch_waiting = self._gauge(
            "batch_waiting_users", "Users whose scores are waited for, not yet with the network"
        )
        self.inference_seconds = self._histogram("inference_seconds", "One micro-batch in the network", WORK_SECONDS)
        self.inference_failures = self._counter("inference_failures", "Runs of the network that raised")
        self.hot_state_hits = self._counter("hot_state_hits", "Users whose hot state a block found")
        self.hot_state_misses = self._counter(
            "hot_state_misses", "Users of a block without hot state: new, evicted, revised"
        )
        self.hot_state_evictions = self._counter("hot_state_evictions", "Users whose hot state gave way to another's")
        self.hot_state_bytes = self._gauge("hot_state_bytes", "Memory of the hot states that are kept")
        self.hot_state_rebuild_seconds = self._histogram(
            "hot_state_rebuild_seconds", "One run of the whole-sequence graph that rebuilds hot states", WORK_SECONDS
        )
        self.explanations = self._counter("explanations", "Answers picked to be explained, by outcome", "outcome")
        self.explanation_seconds = self._histogram(
            "explanation_seconds", "Question to publication of an explanation", WORK_SECONDS
        )
        self.end_to_end_seconds = self._histogram(
            "end_to_end_seconds", "Arrival of an event in Kafka to the commit of its answer", END_TO_END_SECONDS
        )

    def _gauge_the_worker(self) -> None:
        """Where it stands, and whether it is well."""
        self.lag = self._gauge(
            "consumer_lag_messages", "Messages between the committed offset and the end", "partition"
        )
        self.lag_seconds = self._gauge(
            "consumer_lag_seconds", "Age of the oldest record that waits for its answer, 0 when none does", "partition"
        )
        self.table_users = self._gauge("table_users", "Users held in memory, by partition", "partition")
        self.recovery = self._gauge("recovery_remaining_messages", "Changelog messages still to be read back")
        self.ready = self._gauge("ready", "1 when the worker is ready")
        self.condition = self._gauge("condition", "1 when this condition of readiness holds", "condition")
        self.broker_silent_seconds = self._gauge("broker_silent_seconds", "Time since a broker last answered a probe")
        self.loop_silent_seconds = self._gauge("event_loop_silent_seconds", "Time since the event loop last turned")
        self.assignments = self._counter("partition_assignments", "Times that partitions were assigned: rebalances")
        self.gpu_missing = self._gauge("gpu_missing", "1 when the network was to run on a GPU, but runs on the CPU")
        self.transaction_age_seconds = self._gauge(
            "transaction_age_seconds", "Age of the open transaction, 0 when none is open", "partition"
        )

    def _count_what_is_said(self) -> None:
        """Types, stages, probabilities, and what came of them."""
        self.answered_by_type = self._counter("events_answered", "Events answered, by type", "type")
        self.answered_by_stage = self._counter("answers", "Stage-probability records by the user's stage", "stage")
        self.sessions_ended = self._counter("sessions_ended", "Sessions that ended, by the user's stage", "stage")
        self.reach = ReachHistogram(
            "funnelcast_reach_probability", "Reach probabilities of the answers, degraded ones left out", self.registry
        )
        self.base_rate = self._gauge("base_rate", "Share of the training rows that reached the stage", "scope", "stage")
        self.reach_resolved = self._counter("reach_resolved", "Sampled predictions whose horizon has passed")
        self.reach_expected = self._counter("reach_expected", "Sum of their reach probabilities", "scope", "stage")
        self.reach_observed = self._counter("reach_observed", "How many of them did reach the stage", "scope", "stage")
        self.campaign_orders = self._counter(
            "campaign_orders", "Orders within a day of a campaign's decision", "campaign", "group"
        )
        self.model = Info("funnelcast_model", "The bundle that answers", registry=self.registry)

    def _show_zeros(self) -> None:
        """Make known label values exist: a counter that appears at 1 has no increase."""
        for reason in Reason:
            self.rejected.labels(str(reason))
        for outcome in EXPLAINED:
            self.explanations.labels(outcome)
        self._by_stage = [self.answered_by_stage.labels(stage.value) for stage in STAGES]
        self._ended = [self.sessions_ended.labels(stage.value) for stage in STAGES]
        self._by_type = {code: self.answered_by_type.labels(TYPES[code]) for code in range(FIRST_TYPE, SESSION_END)}
        pairs = [(scope, stage.value) for scope in SCOPES for stage in STAGES]
        self._expected = [self.reach_expected.labels(*pair) for pair in pairs]
        self._observed = [self.reach_observed.labels(*pair) for pair in pairs]

    def expect_campaigns(self, campaigns: Sequence[str], reasons: Sequence[str]) -> None:
        """Make the counters of these campaigns exist."""
        for campaign, reason in ((campaign, reason) for campaign in campaigns for reason in reasons):
            self.triggers.labels(campaign)
            self.suppressed.labels(campaign, str(reason))
            for group in GROUPS:
                self.campaign_orders.labels(campaign, group)

    def expect_partition(self, partition: int) -> None:
        """Make the counter of this partition exist."""
        self.consumed.labels(str(partition))

    def taken(self, records: Mapping[int, int], verdicts: npt.NDArray[np.uint8], rejected: Iterable[str]) -> None:
        """Count records by partition, what the fold made of the events, and the reasons of the dead letters."""
        for partition, count in records.items():
            self.consumed.labels(str(partition)).inc(count)
        self.late.inc(int((verdicts == LATE).sum()))
        self.duplicates.inc(int((verdicts == DUPLICATE).sum()))
        for reason in rejected:
            self.rejected.labels(str(reason)).inc()

    def answered(self, records: int, degraded: int) -> None:
        """Count the stage-probability records of one block."""
        self.emitted.inc(records)
        self.degraded.inc(degraded)

    def answers(
        self,
        type_codes: npt.NDArray[np.uint8],
        user_stages: npt.NDArray[np.uint8],
        reach: npt.NDArray[np.floating] | None,
        degraded: npt.NDArray[np.bool_],
    ) -> None:
        """Count what one block's answers say: types (A,), stages (A,), probabilities (A, 2, 6), degraded (A,)."""
        counts = np.bincount(type_codes, minlength=SESSION_END + 1)
        for code in np.flatnonzero(counts[FIRST_TYPE:SESSION_END]).tolist():
            self._by_type[code + FIRST_TYPE].inc(int(counts[code + FIRST_TYPE]))
        ends = user_stages[type_codes == SESSION_END] if counts[SESSION_END] else user_stages[:0]
        for counters, stages in ((self._by_stage, user_stages), (self._ended, ends)):
            counts = np.bincount(stages, minlength=len(STAGES))
            for stage in np.flatnonzero(counts).tolist():
                counters[stage].inc(int(counts[stage]))
        if reach is not None:
            self.reach.observe(reach[~degraded] if degraded.any() else reach)

    def resolved(self, count: int, expected: npt.NDArray[np.floating], observed: npt.NDArray[np.integer]) -> None:
        """Count predictions whose horizon has passed: sums of probabilities and of outcomes, (2, 6) each."""
        self.reach_resolved.inc(count)
        for counters, sums in ((self._expected, expected), (self._observed, observed)):
            for counter, value in zip(counters, sums.ravel().tolist(), strict=True):
                counter.inc(value)

    def decided(self, counts: Mapping[tuple[str, str], int]) -> None:
        """Count decisions by campaign and outcome: a trigger, or the reason why there is none."""
        for (campaign, outcome), count in counts.items():
            if outcome == "fire":
                self.triggers.labels(campaign).inc(count)
            else:
                self.suppressed.labels(campaign, str(outcome)).inc(count)

    def explained(self, outcome: str) -> None:
        """Count an answer that was picked to be explained."""
        self.explanations.labels(outcome).inc()

    def transaction(self, seconds: float) -> None:
        """Count one committed transaction."""
        self.transactions.inc()
        self.transaction_seconds.observe(seconds)

    def committed(self, changelog_bytes: int, queue_depth: int, partition: int) -> None:
        """Count a partition's part of a committed transaction."""
        self.changelog_bytes.inc(changelog_bytes)
        self.queue_depth.labels(str(partition)).set(queue_depth)

    def inference_failed(self) -> None:
        """Count a run of the network that raised."""
        self.inference_failures.inc()

    def expect_rates(self, base_rates: Sequence[Sequence[float]]) -> None:
        """State the base rates that the network was trained on, (2, 6)."""
        for scope, rates in zip(SCOPES, base_rates, strict=True):
            for stage, rate in zip(STAGES, rates, strict=True):
                self.base_rate.labels(scope, stage.value).set(rate)

    def identify(self, name: str, version: str, sha256: str) -> None:
        """Name the bundle that answers."""
        self.model.info({"name": name, "version": version, "sha256": sha256})

    def forget_partition(self, partition: int) -> None:
        """Drop the gauges of a partition that another worker owns now."""
        for gauge in (
            self.lag,
            self.lag_seconds,
            self.table_users,
            self.queue_depth,
            self.transaction_age_seconds,
        ):
            gauge.remove_by_labels({"partition": str(partition)})

    def page(self) -> bytes:
        """Return all samples in Prometheus' text format."""
        return generate_latest(self.registry)
