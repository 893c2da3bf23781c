"""Metrics: counts and durations from every room in, Prometheus samples out; base units, no user ids.

Each `Metrics` has a registry of its own, so a test counts from zero. Histograms take whole arrays: one call per block.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry, Counter, Gauge, Info, generate_latest
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from model.contract.rows import DUPLICATE, LATE

# Upper bounds of the histogram buckets. The end-to-end target is p50 40 ms and p99 100 ms.
END_TO_END_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
WORK_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10)
USERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)


class Histogram(Collector):
    """A Prometheus histogram that observes arrays; written by one thread, read by another."""

    def __init__(self, name: str, text: str, bounds: Sequence[float], registry: CollectorRegistry) -> None:
        self._name, self._text = name, text
        self._bounds = np.array(bounds, "f8")
        self._counts = np.zeros(len(bounds) + 1, "i8")
        self._sum = 0.0
        registry.register(self)

    def observe(self, values: npt.ArrayLike) -> None:
        """Count one value or an array of values."""
        array = np.atleast_1d(np.asarray(values, "f8"))
        places = np.searchsorted(self._bounds, array, side="left")
        self._counts = self._counts + np.bincount(places, minlength=len(self._counts))
        self._sum += float(array.sum())

    def collect(self) -> Iterator[Metric]:
        """Yield the one metric family."""
        names = [*(f"{bound:g}" for bound in self._bounds), "+Inf"]
        buckets = list(zip(names, self._counts.cumsum().astype(float).tolist(), strict=True))
        yield HistogramMetricFamily(self._name, self._text, buckets=buckets, sum_value=self._sum)


class Metrics:
    """Everything that the worker counts."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"funnelcast_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"funnelcast_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, bounds: Sequence[float]) -> Histogram:
            return Histogram(f"funnelcast_{name}", text, bounds, registry)

        self.consumed = counter("records_consumed", "Source records taken, by partition", "partition")
        self.rejected = counter("records_rejected", "Source records that became dead letters, by reason", "reason")
        self.late = counter("events_late", "Events older than the lateness bound")
        self.duplicates = counter("events_duplicate", "Events whose message id was seen before")
        self.emitted = counter("stage_probabilities_emitted", "Stage-probability records, session ends included")
        self.degraded = counter("stage_probabilities_degraded", "Stage-probability records that carry the base rate")
        self.triggers = counter("triggers_emitted", "Trigger records, by campaign", "campaign")
        self.suppressed = counter("triggers_suppressed", "Triggers withheld, by reason", "campaign", "reason")
        self.transactions = counter("transactions_committed", "Kafka transactions committed")
        self.transaction_seconds = histogram("transaction_seconds", "Begin to commit of a transaction", WORK_SECONDS)
        self.changelog_bytes = counter("changelog_bytes", "Keys and values written to the table's changelog")
        self.queue_depth = gauge("queue_depth_chunks", "Fetched chunks that wait for their transaction", "partition")
        self.batch_users = histogram("batch_users", "Users in one micro-batch", USERS)
        self.batch_wait_seconds = histogram("batch_wait_seconds", "Wait of the oldest of a micro-batch", WORK_SECONDS)
        self.batch_waiting = gauge("batch_waiting_users", "Users whose scores are waited for, not yet with the network")
        self.inference_seconds = histogram("inference_seconds", "One micro-batch in the network", WORK_SECONDS)
        self.inference_failures = counter("inference_failures", "Runs of the network that raised")
        self.hot_state_hits = counter("hot_state_hits", "Users whose hot state a block found")
        self.hot_state_misses = counter("hot_state_misses", "Users of a block without hot state: new, evicted, revised")
        self.hot_state_evictions = counter("hot_state_evictions", "Users whose hot state gave way to another's")
        self.hot_state_bytes = gauge("hot_state_bytes", "Memory of the hot states that are kept")
        self.hot_state_rebuild_seconds = histogram(
            "hot_state_rebuild_seconds", "One run of the whole-sequence graph that rebuilds hot states", WORK_SECONDS
        )
        self.end_to_end_seconds = histogram(
            "end_to_end_seconds", "Arrival of an event in Kafka to the commit of its answer", END_TO_END_SECONDS
        )
        self.lag = gauge("consumer_lag_messages", "Messages between the committed offset and the end", "partition")
        self.table_users = gauge("table_users", "Users held in memory, by partition", "partition")
        self.recovery = gauge("recovery_remaining_messages", "Changelog messages still to be read back")
        self.ready = gauge("ready", "1 when the worker is ready")
        self.model = Info("funnelcast_model", "The bundle that answers", registry=registry)

    def taken(self, partition: int, records: int, verdicts: npt.NDArray[np.uint8], rejected: Iterable[str]) -> None:
        """Count one chunk: its records, what the fold made of the events, and the reasons of the dead letters."""
        self.consumed.labels(str(partition)).inc(records)
        self.late.inc(int((verdicts == LATE).sum()))
        self.duplicates.inc(int((verdicts == DUPLICATE).sum()))
        for reason in rejected:
            self.rejected.labels(str(reason)).inc()

    def answered(self, records: int, degraded: int) -> None:
        """Count the stage-probability records of one block."""
        self.emitted.inc(records)
        self.degraded.inc(degraded)

    def decided(self, campaign: str, outcome: str) -> None:
        """Count one decision: a trigger, or the reason why there is none."""
        if outcome == "fire":
            self.triggers.labels(campaign).inc()
        else:
            self.suppressed.labels(campaign, str(outcome)).inc()

    def transaction(self, seconds: float, changelog_bytes: int, queue_depth: int, partition: int) -> None:
        """Count one committed transaction."""
        self.transactions.inc()
        self.transaction_seconds.observe(seconds)
        self.changelog_bytes.inc(changelog_bytes)
        self.queue_depth.labels(str(partition)).set(queue_depth)

    def inference_failed(self) -> None:
        """Count a run of the network that raised."""
        self.inference_failures.inc()

    def identify(self, name: str, version: str, sha256: str) -> None:
        """Name the bundle that answers."""
        self.model.info({"name": name, "version": version, "sha256": sha256})

    def forget_partition(self, partition: int) -> None:
        """Drop the gauges of a partition that another worker owns now."""
        for gauge in (self.lag, self.table_users, self.queue_depth):
            gauge.remove_by_labels({"partition": str(partition)})

    def page(self) -> bytes:
        """Return all samples in Prometheus' text format."""
        return generate_latest(self.registry)
