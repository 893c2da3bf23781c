"""Console: metrics, health and the latest triggers in; one live page out, for whoever has no Grafana at hand.

Read-only. The page is one file without a build step; it polls /console.json and works out rates and quantiles itself.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from importlib import resources
from typing import Any

import msgspec

from model.contract.stages import STAGES
from worker.health import Health, Page
from worker.metrics import LatestTrigger, Metrics
from worker.watch import shortened

Samples = dict[str, list[tuple[dict[str, str], float]]]


class Console:
    """Makes the page and its data; `full_ids` shows whole user ids."""

    def __init__(
        self, metrics: Metrics, health: Health, *, full_ids: bool = False, clock: Callable[[], float] = time.time
    ) -> None:
        self._metrics, self._health, self._full_ids, self._clock = metrics, health, full_ids, clock
        self._page = (resources.files("worker") / "console.html").read_bytes()

    def pages(self) -> dict[str, Page]:
        """Return the page and its data by path, for the health server."""
        return {
            "/": lambda: (True, self._page, "text/html; charset=utf-8"),
            "/console.json": lambda: (True, self.data(), "application/json"),
        }

    def data(self) -> bytes:
        """Return what the page shows, as JSON."""
        samples = self._samples()
        return msgspec.json.encode(
            {
                "time": self._clock(),
                "ready": self._health.ready,
                "conditions": self._health.conditions,
                "model": next((labels for labels, _ in samples["funnelcast_model_info"]), {}),
                "totals": {
                    "clicks": _total(samples, "funnelcast_records_consumed_total"),
                    "answers": _total(samples, "funnelcast_stage_probabilities_emitted_total"),
                    "degraded": _total(samples, "funnelcast_stage_probabilities_degraded_total"),
                    "dead_letters": _total(samples, "funnelcast_records_rejected_total"),
                    "late": _total(samples, "funnelcast_events_late_total"),
                    "duplicates": _total(samples, "funnelcast_events_duplicate_total"),
                    "triggers": _total(samples, "funnelcast_triggers_emitted_total"),
                    "users": _total(samples, "funnelcast_table_users"),
                    "recovery": _total(samples, "funnelcast_recovery_remaining_messages"),
                },
                "latency": [
                    [float(labels["le"]) if labels["le"] != "+Inf" else None, count]
                    for labels, count in samples["funnelcast_end_to_end_seconds_bucket"]
                ],
                "partitions": _partitions(samples),
                "stages": _by(samples, "funnelcast_answers_total", "stage", STAGES),
                "chances": _mean_chances(samples),
                "suppressed": _by(samples, "funnelcast_triggers_suppressed_total", "reason"),
                "triggers": [self._trigger(trigger) for trigger in reversed(tuple(self._metrics.latest_triggers))],
            }
        )

    def _samples(self) -> Samples:
        samples: Samples = defaultdict(list)
        for family in self._metrics.registry.collect():
            for sample in family.samples:
                samples[sample.name].append((sample.labels, sample.value))
        return samples

    def _trigger(self, trigger: LatestTrigger) -> dict[str, Any]:
        user = trigger.user_id
        if not self._full_ids:
            short = shortened(user)
            user = short if short != user else f"{user[:1]}…"  # an id that is short already is still an id
        return {**trigger._asdict(), "user_id": user}


def _total(samples: Samples, name: str) -> float:
    return sum(value for _, value in samples[name])


def _by(samples: Samples, name: str, label: str, order: tuple[str, ...] = ()) -> dict[str, float]:
    sums: dict[str, float] = dict.fromkeys(map(str, order), 0.0)
    for labels, value in samples[name]:
        sums[labels[label]] = sums.get(labels[label], 0.0) + value
    return sums


def _partitions(samples: Samples) -> list[dict[str, float | str | None]]:
    names = {"messages": "funnelcast_consumer_lag_messages", "seconds": "funnelcast_consumer_lag_seconds"}
    found = {key: _by(samples, name, "partition") for key, name in names.items()}
    partitions = sorted(_by(samples, "funnelcast_table_users", "partition"), key=int)
    return [{"partition": number} | {key: found[key].get(number) for key in names} for number in partitions]


def _mean_chances(samples: Samples) -> dict[str, float]:
    """Return the mean chance to reach each stage, anywhere, over all answers of this process."""
    totals = [
        {labels["stage"]: value for labels, value in samples[f"funnelcast_reach_probability_{end}"]
         if labels["scope"] == "user"}
        for end in ("sum", "count")
    ]  # fmt: skip
    return {stage: total / totals[1][stage] for stage, total in totals[0].items() if totals[1][stage]}
