"""The page of metrics, the code, the rules and the dashboards name the same metrics."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from worker.metrics import Metrics

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "deploy" / "docs" / "metrics.md"
RULES = sorted((ROOT / "deploy" / "prometheus" / "rules").glob("*.yaml"))
DASHBOARDS = sorted((ROOT / "deploy" / "grafana" / "dashboards").glob("*.json"))
ROW = re.compile(r"^\| `(\w+)` \| (\w+) \| ([\w, ]*) ?\| ([\w ]+) \| (.+) \|$", re.MULTILINE)
NAME = re.compile(r"\b(?:\w+:)?(?:funnelcast|process)_\w+(?::\w+)?")


def in_code() -> dict[str, tuple[str, set[str]]]:
    """Return type and labels by sample name, a histogram's without its suffix."""
    found = {}
    for collector in Metrics().registry._collector_to_names:
        for family in collector.collect():
            suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
            kind = "gauge" if family.type == "info" else family.type
            labels = {name for sample in family.samples for name in sample.labels} | set(
                getattr(collector, "_labelnames", ())
            )
            found[family.name + suffix] = kind, labels - {"le"}
    found["funnelcast_model_info"] = "gauge", {"name", "version", "sha256"}
    return found


def on_page() -> dict[str, tuple[str, set[str]]]:
    rows = ROW.findall(PAGE.read_text())
    return {name: (kind, {label.strip() for label in labels.split(",")} - {""}) for name, kind, labels, _, _ in rows}


def rules() -> list[dict[str, Any]]:
    return [r for path in RULES for group in yaml.safe_load(path.read_text())["groups"] for r in group["rules"]]


def queries(node: Any) -> Iterator[str]:
    """Yield every expression of a dashboard."""
    if isinstance(node, dict):
        if isinstance(node.get("expr"), str):
            yield node["expr"]
        for child in node.values():
            yield from queries(child)
    elif isinstance(node, list):
        for child in node:
            yield from queries(child)


def names(expression: str) -> set[str]:
    without_labels = re.sub(r"(\bby|\bon|\bwithout)\s*\([^)]*\)|\{[^}]*\}", " ", expression)
    return set(NAME.findall(without_labels))


def known() -> set[str]:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    suffixes = {"histogram": ("_bucket", "_sum", "_count")}
    return recorded | {name + end for name, (kind, _) in in_code().items() for end in suffixes.get(kind, ("",))}


def test_the_page_lists_every_metric_with_its_type_and_labels_and_no_other() -> None:
    assert on_page() == in_code()


def test_every_name_that_a_rule_uses_exists() -> None:
    for rule in rules():
        used = names(rule["expr"])
        assert used <= known(), (rule.get("alert") or rule["record"], used - known())
        assert used or "up{" in rule["expr"]


def test_every_name_that_a_dashboard_uses_exists() -> None:
    for path in DASHBOARDS:
        for query in queries(json.loads(path.read_text())):
            assert names(query) <= known(), (path.name, query, names(query) - known())


def test_every_recorded_name_is_used() -> None:
    expressions = [rule["expr"] for rule in rules()] + [
        query for path in DASHBOARDS for query in queries(json.loads(path.read_text()))
    ]
    used = set().union(*map(names, expressions))
    assert {rule["record"] for rule in rules() if "record" in rule} <= used


def test_names_are_found_in_an_expression() -> None:
    assert names('sum by (job) (rate(funnelcast_x_total{a="funnelcast_y"}[5m])) / job:funnelcast_z:rate5m') == {
        "funnelcast_x_total",
        "job:funnelcast_z:rate5m",
    }
