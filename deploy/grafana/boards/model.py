"""The model's dashboard: what the network says, whether it is still right, how it runs."""

from __future__ import annotations

import functools

from boards.panels import JOB, Panel, Query, Row, by_stage, mean_reach, over_range, quantile, rate, where


def drift(scope: str, stage: str) -> str:
    """Return the query of the mean of an hour over the base rate of the training."""
    mean = "job_scope_stage:funnelcast_reach_probability:mean1h" + where(f'scope="{scope}", {stage}')
    base = f"max by (job, scope, stage) (funnelcast_base_rate{JOB})"
    return f"{mean} / on (job, scope, stage) {base}"


def followed(metric: str) -> list[Query]:
    """Return the queries of a share of the followed predictions over the shown time, anywhere."""
    resolved = over_range("funnelcast_reach_resolved_total")

    def share(stage: str) -> str:
        counted = over_range(f"funnelcast_reach_{metric}_total", labels=f'scope="user", {stage}')
        return f"{counted} / {resolved}"

    return by_stage(share)


MODEL = [
    Row(
        "What does it say?",
        [
            Panel(
                "Model that answers",
                "Workers by model. More than one line for longer than an upgrade: the workers disagree.",
                "short",
                [
                    (
                        "count by (name, version, sha) "
                        f'(label_replace(funnelcast_model_info{JOB}, "sha", "$1", "sha256", "(.{{8}}).*"))',
                        "{{name}} {{version}} {{sha}}",
                    )
                ],
                "line",
            ),
            Panel(
                "Mean chance in the category",
                "Mean probability to reach the stage within the horizon, in the category of the event.",
                "percentunit",
                by_stage(functools.partial(mean_reach, "category")),
            ),
            Panel(
                "Mean chance anywhere",
                "Mean probability to reach the stage within the horizon, anywhere.",
                "percentunit",
                by_stage(functools.partial(mean_reach, "user")),
            ),
            Panel(
                "Chances to fill a cart",
                "Answers per second by probability of intent in the category.",
                "percentunit",
                [
                    (
                        rate("funnelcast_reach_probability_bucket", "le", labels='scope="category", stage="intent"'),
                        "{{le}}",
                    )
                ],
                "heat",
            ),
            Panel(
                "Chances to buy",
                "Answers per second by probability of purchase anywhere.",
                "percentunit",
                [
                    (
                        rate("funnelcast_reach_probability_bucket", "le", labels='scope="user", stage="purchase"'),
                        "{{le}}",
                    )
                ],
                "heat",
            ),
            Panel(
                "Events that it sees",
                "Events per second by type. A type that vanishes: a producer renamed or lost it.",
                "reqps",
                [(rate("funnelcast_events_answered_total", "type"), "{{type}}")],
                "stack",
            ),
        ],
    ),
    Row(
        "Is it still right?",
        [
            Panel(
                "Drift in the category",
                "Mean probability of an hour over the base rate of the training log; 1 means the same mix of users.",
                "short",
                by_stage(functools.partial(drift, "category")),
            ),
            Panel(
                "Drift anywhere",
                "Mean probability of an hour over the base rate of the training log; 1 means the same mix of users.",
                "short",
                by_stage(functools.partial(drift, "user")),
            ),
            Panel(
                "Calibration over 6 hours",
                "Users who reached the stage over those who should have by the probabilities; 1 is right, below 1 it "
                "promises too much. Followed to the end of the horizon.",
                "short",
                [(f"job_scope_stage:funnelcast_reach:observed_to_expected6h{JOB}", "{{scope}} {{stage}}")],
            ),
            Panel(
                "Promised",
                "Mean probability of the predictions that were followed over the shown time, anywhere.",
                "percentunit",
                followed("expected"),
                "bars",
            ),
            Panel(
                "Came true",
                "Share of those predictions whose user reached the stage within the horizon, anywhere.",
                "percentunit",
                followed("observed"),
                "bars",
            ),
            Panel(
                "Predictions followed",
                "Predictions per hour whose horizon passed; calibration rests on them.",
                "short",
                [(f"sum(increase(funnelcast_reach_resolved_total{JOB}[1h]))", "per hour")],
            ),
        ],
    ),
    Row(
        "How does it run?",
        [
            Panel(
                "Time in the network",
                "Seconds of one micro-batch in the network.",
                "s",
                [
                    (quantile(0.5, "funnelcast_inference_seconds"), "p50"),
                    (f"max(job:funnelcast_inference_seconds:p99_5m{JOB})", "p99, 5 minutes"),
                ],
            ),
            Panel(
                "Answers",
                "Stage-probability records per second, and those with the base rate instead of a score.",
                "reqps",
                [
                    (rate("funnelcast_stage_probabilities_emitted_total"), "all"),
                    (rate("funnelcast_stage_probabilities_degraded_total"), "degraded"),
                ],
            ),
            Panel(
                "Users found in hot state",
                "Share of users whose attention state was kept; the others' sequences are read again. Falling: the "
                "pool is too small (FUNNELCAST_HOT_STATE_BYTES).",
                "percentunit",
                [
                    (
                        f"{rate('funnelcast_hot_state_hits_total')} / ({rate('funnelcast_hot_state_hits_total')} + "
                        f"{rate('funnelcast_hot_state_misses_total')})",
                        "found",
                    )
                ],
            ),
            Panel(
                "Hot state",
                "Memory of the states that are kept.",
                "bytes",
                [(f"sum by (instance) (funnelcast_hot_state_bytes{JOB})", "{{instance}}")],
                "stack",
            ),
            Panel(
                "Evictions and rebuilds",
                "Per second: states that gave way to another user's, and runs over whole sequences that rebuild some.",
                "ops",
                [
                    (rate("funnelcast_hot_state_evictions_total"), "evictions"),
                    (rate("funnelcast_hot_state_rebuild_seconds_count"), "rebuilds"),
                ],
            ),
            Panel(
                "Failed runs",
                "Runs of the network per second that raised an error.",
                "ops",
                [(rate("funnelcast_inference_failures_total"), "failed")],
            ),
        ],
    ),
]
