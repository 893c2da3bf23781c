"""Histograms: arrays of observations in, Prometheus buckets out; one call per block, not per observation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from model.contract.stages import STAGES

SHARES = (0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
SCOPES = ("category", "user")


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


class ReachHistogram(Collector):
    """A Prometheus histogram of reach probabilities by scope and stage; observes whole answers."""

    def __init__(self, name: str, text: str, registry: CollectorRegistry) -> None:
        self._name, self._text = name, text
        # A share is counted by its hundredths, rounded up: the histogram bucket of each of 0 to 100.
        self._place = np.searchsorted(np.round(np.array(SHARES) * 100), np.arange(101), side="left")
        self._series = [[scope, stage.value] for scope in SCOPES for stage in STAGES]
        self._counts = np.zeros((len(self._series), len(SHARES) + 1), "i8")
        self._sums = np.zeros(len(self._series), "f8")
        registry.register(self)

    def observe(self, reach: npt.NDArray[np.floating]) -> None:
        """Count the probabilities of A answers, (A, 2, 6)."""
        columns = reach.reshape(-1, len(self._series))  # (A, 12)
        hundredths = np.ceil(columns * np.float32(100) - np.float32(1e-3)).astype("u1")  # (A, 12)
        places = self._place[hundredths] + self._counts.shape[1] * np.arange(len(self._series))  # (A, 12)
        counts = np.bincount(places.ravel(), minlength=self._counts.size)
        self._counts = self._counts + counts.reshape(self._counts.shape)  # (12, buckets)
        self._sums = self._sums + columns.sum(axis=0, dtype="f8")

    def collect(self) -> Iterator[Metric]:
        """Yield the one metric family."""
        family = HistogramMetricFamily(self._name, self._text, labels=("scope", "stage"))
        names = [*(f"{bound:g}" for bound in SHARES), "+Inf"]
        for labels, counts, total in zip(self._series, self._counts.cumsum(axis=1), self._sums, strict=True):
            family.add_metric(labels, list(zip(names, counts.astype(float).tolist(), strict=True)), float(total))
        yield family
