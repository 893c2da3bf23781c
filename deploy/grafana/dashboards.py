"""Dashboards as code: panels in, Grafana's JSON out, one file per reader: pager, model, marketer.

    python deploy/grafana/dashboards.py [--check]

Writes deploy/grafana/dashboards/*.json; --check only says whether the files are what this program writes.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from grafana_foundation_sdk.builders import bargauge, common, dashboard, heatmap, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    LegendDisplayMode,
    LegendPlacement,
    StackingMode,
    TooltipDisplayMode,
    VizOrientation,
)
from grafana_foundation_sdk.models.dashboard import DashboardCursorSync, DataSourceRef, Threshold, ThresholdsMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

OUT = Path(__file__).parent / "dashboards"
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
FULL = 24  # columns of Grafana's grid

Query = tuple[str, str]  # expression, legend


class Panel(NamedTuple):
    """One panel; `kind` is line, stack, number, bars or heat."""

    title: str
    description: str
    unit: str
    queries: Sequence[Query]
    kind: str = "line"
    width: int = 8
    height: int = 8
    limit: float | None = None  # above it the number turns red


class Row(NamedTuple):
    """One question and the panels that answer it."""

    title: str
    panels: Sequence[Panel]


def number(title: str, description: str, unit: str, query: str, limit: float | None = None) -> Panel:
    """Return a panel that shows one number, six in a row."""
    return Panel(title, description, unit, [(query, "")], "number", 4, 4, limit)


def quantile(share: float, metric: str) -> str:
    """Return the query of a quantile over all workers."""
    return f"histogram_quantile({share}, sum by (le) (rate({metric}_bucket{JOB}[$__rate_interval])))"


def rate(metric: str, *by: str, labels: str = "") -> str:
    """Return the query of a rate per second over all workers."""
    grouped = f" by ({', '.join(by)})" if by else ""
    return f"sum{grouped} (rate({metric}{_where(labels)}[$__rate_interval]))"


def over_range(metric: str, *by: str, labels: str = "") -> str:
    """Return the query of an increase over the shown time."""
    grouped = f" by ({', '.join(by)})" if by else ""
    return f"sum{grouped} (increase({metric}{_where(labels)}[$__range]))"


def _where(labels: str = "") -> str:
    return f'{{job=~"$job"{", " if labels else ""}{labels}}}'


JOB = _where()

PAGER = [
    Row(
        "Is it healthy?",
        [
            number("Workers up", "Workers that answer their scrape.", "short", f"sum(up{JOB})"),
            number(
                "Workers ready",
                "Workers with partitions, a recovered table, a bundle and a broker that answers.",
                "short",
                f"sum(funnelcast_ready{JOB})",
            ),
            number(
                "Alerts firing",
                "Alerts of Funnelcast that fire now; their runbook section says what to do.",
                "short",
                'count(ALERTS{alertstate="firing", alertname=~"Funnelcast.*"}) or vector(0)',
                1,
            ),
            number("Clicks", "Clicks taken from Kafka per second.", "reqps", rate("funnelcast_records_consumed_total")),
            number(
                "Latency, p99",
                "Arrival in Kafka to the commit of the answer, over 5 minutes; the target is 100 ms.",
                "s",
                f"max(job:funnelcast_end_to_end_seconds:p99_5m{JOB})",
                0.1,
            ),
            number(
                "Clicks waiting",
                "Consumer lag: end of the click topic less the committed offsets.",
                "short",
                f"sum(job:funnelcast_consumer_lag_messages:sum{JOB})",
                1000,
            ),
            Panel(
                "Conditions of readiness",
                "1 where the condition holds. A worker is ready when all four do; the first that falls is the cause.",
                "bool_yes_no",
                [(f"funnelcast_condition{JOB}", "{{instance}} {{condition}}")],
            ),
            Panel(
                "Partitions by worker",
                "Source partitions that each worker owns. Uneven for long: a worker is missing or a rebalance hangs.",
                "short",
                [(f"count by (instance) (funnelcast_consumer_lag_messages{JOB})", "{{instance}}")],
                "stack",
            ),
            Panel(
                "Rebalances and restarts",
                "Assignments of partitions and process starts within the last hour.",
                "short",
                [
                    (
                        f"sum by (instance) (increase(funnelcast_partition_assignments_total{JOB}[1h]))",
                        "{{instance}} assignments",
                    ),
                    (f"changes(process_start_time_seconds{JOB}[1h])", "{{instance}} restarts"),
                ],
            ),
            Panel(
                "Silence",
                "Since a broker answered the probe (10 s: not ready), since the event loop turned (30 s: not live).",
                "s",
                [
                    (f"funnelcast_broker_silent_seconds{JOB}", "{{instance}} broker"),
                    (f"funnelcast_event_loop_silent_seconds{JOB}", "{{instance}} event loop"),
                ],
            ),
            Panel(
                "Recovery",
                "Changelog messages still to be read back after a start; falls to 0, then the partitions are served.",
                "short",
                [(f"funnelcast_recovery_remaining_messages{JOB}", "{{instance}}")],
            ),
            Panel(
                "Memory",
                "Resident memory of each worker; flat over hours.",
                "bytes",
                [(f"process_resident_memory_bytes{JOB}", "{{instance}}")],
            ),
        ],
    ),
    Row(
        "What is slow?",
        [
            Panel(
                "End-to-end latency",
                "Arrival of a click in Kafka to the commit of its answer; targets: p50 40 ms, p99 100 ms.",
                "s",
                [
                    (f"max(job:funnelcast_end_to_end_seconds:p50_5m{JOB})", "p50"),
                    (f"max(job:funnelcast_end_to_end_seconds:p99_5m{JOB})", "p99"),
                ],
            ),
            Panel(
                "Where the time goes, p99",
                "Wait for the micro-batch, the network, and the whole transaction: both of them and Kafka's part.",
                "s",
                [
                    (quantile(0.99, "funnelcast_batch_wait_seconds"), "batch wait"),
                    (quantile(0.99, "funnelcast_inference_seconds"), "network"),
                    (quantile(0.99, "funnelcast_transaction_seconds"), "transaction"),
                ],
            ),
            Panel(
                "Age of the oldest click",
                "How long the oldest click without an answer has waited, by partition.",
                "s",
                [
                    (f"max by (partition) (funnelcast_consumer_lag_seconds{JOB})", "partition {{partition}}"),
                    (f"max(job:funnelcast_consumer_lag_seconds:max{JOB})", "oldest"),
                ],
            ),
            Panel(
                "Clicks waiting, by partition",
                "Consumer lag in messages. One partition alone: a user who sends thousands of clicks.",
                "short",
                [(f"sum by (partition) (funnelcast_consumer_lag_messages{JOB})", "partition {{partition}}")],
            ),
            Panel(
                "Queues",
                "Chunks that wait for their transaction, users that wait for the network.",
                "short",
                [
                    (f"sum(funnelcast_queue_depth_chunks{JOB})", "chunks"),
                    (f"sum(funnelcast_batch_waiting_users{JOB})", "users"),
                ],
            ),
            Panel(
                "Micro-batch",
                "Users in one run of the network: small ones mean little traffic, full ones that it is the bottleneck.",
                "short",
                [(quantile(0.5, "funnelcast_batch_users"), "p50"), (quantile(0.99, "funnelcast_batch_users"), "p99")],
            ),
            Panel(
                "Transactions",
                "Committed per second, by worker.",
                "ops",
                [(rate("funnelcast_transactions_committed_total", "instance"), "{{instance}}")],
            ),
            Panel(
                "Oldest open transaction",
                "Kafka aborts a transaction at 30 s, which ends the worker.",
                "s",
                [(f"max by (partition) (funnelcast_transaction_age_seconds{JOB})", "partition {{partition}}")],
            ),
            Panel(
                "CPU",
                "Cores that each worker uses.",
                "short",
                [(f"rate(process_cpu_seconds_total{JOB}[$__rate_interval])", "{{instance}}")],
            ),
        ],
    ),
    Row(
        "What is lost?",
        [
            Panel(
                "Dead letters by reason",
                "Clicks per second that cannot be read; they lie in the dead-letter topic.",
                "reqps",
                [(rate("funnelcast_records_rejected_total", "reason"), "{{reason}}")],
                "stack",
            ),
            Panel(
                "Late and duplicate events",
                "Events per second that are too old for their user's sequence, or were seen before.",
                "reqps",
                [
                    (rate("funnelcast_events_late_total"), "late"),
                    (rate("funnelcast_events_duplicate_total"), "duplicate"),
                ],
            ),
            Panel(
                "Shares",
                "Of the clicks: dead letters and late ones; of the answers: degraded ones. Over 5 minutes.",
                "percentunit",
                [
                    (f"job:funnelcast_records_rejected:ratio5m{JOB}", "dead letters"),
                    (f"job:funnelcast_events_late:ratio5m{JOB}", "late"),
                    (f"job:funnelcast_stage_probabilities_degraded:ratio5m{JOB}", "degraded"),
                ],
            ),
            Panel(
                "Failed runs of the network",
                "Each is split and tried again; what fails alone is answered with the base rate.",
                "ops",
                [(rate("funnelcast_inference_failures_total", "instance"), "{{instance}}")],
            ),
            Panel(
                "Users in memory",
                "Users whose sequences each worker holds.",
                "short",
                [(f"sum by (instance) (funnelcast_table_users{JOB})", "{{instance}}")],
                "stack",
            ),
            Panel(
                "Changelog",
                "Bytes per second written to the table's changelog.",
                "Bps",
                [(rate("funnelcast_changelog_bytes_total", "instance"), "{{instance}}")],
                "stack",
            ),
        ],
    ),
]


def mean_reach(scope: str) -> str:
    """Return the query of the mean reach probability by stage."""
    scoped = f'scope="{scope}"'
    metric = "funnelcast_reach_probability"
    return f"{rate(f'{metric}_sum', 'stage', labels=scoped)} / {rate(f'{metric}_count', 'stage', labels=scoped)}"


def drift(scope: str) -> str:
    """Return the query of the mean of an hour over the base rate of the training."""
    mean = "job_scope_stage:funnelcast_reach_probability:mean1h" + _where(f'scope="{scope}"')
    base = f"max by (job, scope, stage) (funnelcast_base_rate{JOB})"
    return f"{mean} / on (job, scope, stage) {base}"


def followed(metric: str, scope: str) -> str:
    """Return the query of a share of the followed predictions over the shown time."""
    counted = over_range(f"funnelcast_reach_{metric}_total", "stage", labels=f'scope="{scope}"')
    return f"{counted} / on () group_left () {over_range('funnelcast_reach_resolved_total')}"


MODEL = [
    Row(
        "What does it say?",
        [
            Panel(
                "Model that answers",
                "Workers by model. More than one line for longer than an upgrade: the workers disagree.",
                "short",
                [(f"count by (name, version, sha256) (funnelcast_model_info{JOB})", "{{name}} {{version}} {{sha256}}")],
                "line",
            ),
            Panel(
                "Mean chance in the category",
                "Mean probability to reach the stage within the horizon, in the category of the event.",
                "percentunit",
                [(mean_reach("category"), "{{stage}}")],
            ),
            Panel(
                "Mean chance anywhere",
                "Mean probability to reach the stage within the horizon, anywhere.",
                "percentunit",
                [(mean_reach("user"), "{{stage}}")],
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
                [(drift("category"), "{{stage}}")],
            ),
            Panel(
                "Drift anywhere",
                "Mean probability of an hour over the base rate of the training log; 1 means the same mix of users.",
                "short",
                [(drift("user"), "{{stage}}")],
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
                [(followed("expected", "user"), "{{stage}}")],
                "bars",
            ),
            Panel(
                "Came true",
                "Share of those predictions whose user reached the stage within the horizon, anywhere.",
                "percentunit",
                [(followed("observed", "user"), "{{stage}}")],
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
                "Failed runs",
                "Runs of the network per second that raised an error.",
                "ops",
                [(rate("funnelcast_inference_failures_total"), "failed")],
            ),
        ],
    ),
]


def ratio_of_events(deep: str, shallow: str) -> str:
    """Return the query of one event type over another, over the shown time."""
    above, below = (over_range("funnelcast_events_answered_total", labels=f'type="{name}"') for name in (deep, shallow))
    return f"{above} / {below}"


HELD = over_range("funnelcast_triggers_suppressed_total", "campaign", labels='reason="holdout"')
SENT = over_range("funnelcast_triggers_emitted_total", "campaign")


def orders(group: str) -> str:
    """Return the query of a group's orders over the shown time."""
    return over_range("funnelcast_campaign_orders_total", "campaign", labels=f'group="{group}"')


MARKETER = [
    Row(
        "The funnel",
        [
            number(
                "Clicks",
                "Clicks answered over the shown time.",
                "short",
                over_range("funnelcast_events_answered_total"),
            ),
            number("Sessions ended", "Over the shown time.", "short", over_range("funnelcast_sessions_ended_total")),
            number(
                "Orders",
                "Over the shown time.",
                "short",
                over_range("funnelcast_events_answered_total", labels='type="order"'),
            ),
            number(
                "Carts per view",
                "Products put into carts over products viewed, over the shown time.",
                "percentunit",
                ratio_of_events("cart_add", "product_view"),
            ),
            number(
                "Orders per cart",
                "Orders over products put into carts, over the shown time.",
                "percentunit",
                ratio_of_events("order", "cart_add"),
            ),
            number("Triggers", "Sent over the shown time.", "short", over_range("funnelcast_triggers_emitted_total")),
            Panel(
                "Sessions by stage",
                "Sessions that ended, by the deepest stage that their user reached within the day.",
                "short",
                [(over_range("funnelcast_sessions_ended_total", "stage"), "{{stage}}")],
                "bars",
            ),
            Panel(
                "Events",
                "Per second, by type.",
                "reqps",
                [(rate("funnelcast_events_answered_total", "type"), "{{type}}")],
                "stack",
            ),
            Panel(
                "Chance to buy within a day",
                "Mean over all answers, anywhere and in the category of the event.",
                "percentunit",
                [
                    (mean_reach("user").replace('scope="user"', 'scope="user", stage="purchase"'), "anywhere"),
                    (
                        mean_reach("category").replace('scope="category"', 'scope="category", stage="purchase"'),
                        "in the category",
                    ),
                ],
            ),
        ],
    ),
    Row(
        "Campaigns",
        [
            Panel(
                "Triggers",
                "Sent per second, by campaign.",
                "ops",
                [(rate("funnelcast_triggers_emitted_total", "campaign"), "{{campaign}}")],
                "stack",
            ),
            Panel(
                "Withheld",
                "Per second, by reason: cooldown, hysteresis (the chance has hardly moved since), holdout and others.",
                "ops",
                [(rate("funnelcast_triggers_suppressed_total", "reason"), "{{reason}}")],
                "stack",
            ),
            Panel(
                "Sent and withheld",
                "Over the shown time, by campaign.",
                "short",
                [
                    (SENT, "{{campaign}} sent"),
                    (over_range("funnelcast_triggers_suppressed_total", "campaign"), "{{campaign}} withheld"),
                ],
                "bars",
            ),
        ],
    ),
    Row(
        "Do they work? Treatment against holdout",
        [
            Panel(
                "Users decided on",
                "Decisions over the shown time: triggers sent (treatment), and withheld to measure (holdout).",
                "short",
                [(SENT, "{{campaign}} treatment"), (HELD, "{{campaign}} holdout")],
                "bars",
            ),
            Panel(
                "Orders within a day",
                "Orders of users on whom the campaign decided within the day before, over the shown time.",
                "short",
                [(orders("treatment"), "{{campaign}} treatment"), (orders("holdout"), "{{campaign}} holdout")],
                "bars",
            ),
            Panel(
                "Orders per decision",
                "The campaign works where treatment is above holdout by more than chance; small groups prove nothing.",
                "percentunit",
                [
                    (f"{orders('treatment')} / {SENT}", "{{campaign}} treatment"),
                    (f"{orders('holdout')} / {HELD}", "{{campaign}} holdout"),
                ],
                "bars",
            ),
        ],
    ),
]

DASHBOARDS = {
    "pager": ("Funnelcast: pager", "Is it healthy, what is slow, what is lost.", PAGER),
    "model": ("Funnelcast: model", "What the network says, whether it is still right, how it runs.", MODEL),
    "marketer": ("Funnelcast: marketer", "The funnel, the campaigns, and whether they work.", MARKETER),
}


def written() -> dict[Path, str]:
    """Return each file with its content."""
    return {
        OUT / f"{name}.json": JSONEncoder(sort_keys=True, indent=2).encode(_board(name, *rest).build()) + "\n"
        for name, rest in DASHBOARDS.items()
    }


def _board(name: str, title: str, description: str, rows: Sequence[Row]) -> dashboard.Dashboard:
    board = (
        dashboard.Dashboard(title)
        .uid(f"funnelcast-{name}")
        .description(description)
        .tags(["funnelcast"])
        .refresh("10s")
        .time("now-1h", "now")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .readonly()
        .with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        .with_variable(
            dashboard.QueryVariable("job")
            .label("Job")
            .query("label_values(funnelcast_ready, job)")
            .datasource(SOURCE)
            .multi(True)
            .include_all(True)
            .all_value(".*")
        )
        .link(dashboard.DashboardLink("Funnelcast").type("dashboards").tags(["funnelcast"]).as_dropdown(True))
    )
    numbers = itertools.count(1)
    for row in rows:
        board = board.with_row(dashboard.Row(row.title).id(next(numbers)))
        for panel in row.panels:
            board = board.with_panel(_panel(panel).id(next(numbers)))
    return board


def _panel(panel: Panel) -> Any:
    built: Any = {"number": _number, "bars": _bars, "heat": _heat}.get(panel.kind, _lines)(panel)
    built = (
        built.title(panel.title)
        .description(panel.description)
        .datasource(SOURCE)
        .unit(panel.unit)
        .span(panel.width)
        .height(panel.height)
    )
    for place, (expression, legend) in enumerate(panel.queries):
        built = built.with_target(_target(panel.kind, place, expression, legend))
    return built


def _target(kind: str, place: int, expression: str, legend: str) -> prometheus.Dataquery:
    query = prometheus.Dataquery().expr(expression).legend_format(legend or "__auto").ref_id("ABCDEF"[place])
    query = query.instant() if kind in ("number", "bars") else query.range()
    return query.format(PromQueryFormat.HEATMAP) if kind == "heat" else query


def _number(panel: Panel) -> stat.Panel:
    steps = [Threshold(value=None, color="green")]
    if panel.limit is not None:
        steps.append(Threshold(value=panel.limit, color="red"))
    return stat.Panel().thresholds(dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps))


def _bars(panel: Panel) -> bargauge.Panel:
    return bargauge.Panel().orientation(VizOrientation.HORIZONTAL).min(0)


def _heat(panel: Panel) -> heatmap.Panel:
    return heatmap.Panel()


def _lines(panel: Panel) -> timeseries.Panel:
    built = (
        timeseries.Panel()
        .line_width(1)
        .axis_soft_min(0)
        .legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
    )
    if panel.kind == "stack":
        built = built.fill_opacity(30).stacking(common.StackingConfig().mode(StackingMode.NORMAL))
    return built


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the dashboards' JSON.")
    parser.add_argument("--check", action="store_true", help="write nothing; end with 1 where a file is stale")
    check = parser.parse_args().check
    stale = [path for path, text in written().items() if not path.exists() or path.read_text() != text]
    if check and stale:
        print(f"stale: {', '.join(path.name for path in stale)}; run `python deploy/grafana/dashboards.py`")
        return 1
    for path, text in {} if check else written().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
