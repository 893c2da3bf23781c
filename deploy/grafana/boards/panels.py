"""Panels and queries that the dashboards are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

Query = tuple[str, str]  # expression, legend
STAGES = ("awareness", "interest", "consideration", "intent", "purchase", "loyalty")


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
    return f"sum{grouped} (rate({metric}{where(labels)}[$__rate_interval]))"


def over_range(metric: str, *by: str, labels: str = "") -> str:
    """Return the query of an increase over the shown time."""
    grouped = f" by ({', '.join(by)})" if by else ""
    return f"sum{grouped} (increase({metric}{where(labels)}[$__range]))"


def by_stage(expression: Callable[[str], str]) -> list[Query]:
    """Return a query for each stage in the order of the funnel, which Prometheus does not know."""
    return [(expression(f'stage="{stage}"'), stage) for stage in STAGES]


def where(labels: str = "") -> str:
    return f'{{job=~"$job"{", " if labels else ""}{labels}}}'


JOB = where()


def mean_reach(scope: str, stage: str) -> str:
    """Return the query of the mean reach probability of a stage, given as a label."""
    labels, metric = f'scope="{scope}", {stage}', "funnelcast_reach_probability"
    return f"{rate(f'{metric}_sum', labels=labels)} / {rate(f'{metric}_count', labels=labels)}"
