"""Dashboards as code: the panels of boards/ in, Grafana's JSON out, one file per reader: pager, model, marketer.

    python deploy/grafana/dashboards.py [--check]

Writes deploy/grafana/dashboards/*.json, and once more where the Helm chart can read them; --check only says whether the
files are what this program writes.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from boards.marketer import MARKETER
from boards.model import MODEL
from boards.pager import PAGER
from boards.panels import Panel, Row
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

HERE = Path(__file__).parent
FOLDERS = (HERE / "dashboards", HERE.parent / "helm" / "funnelcast" / "dashboards")
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")

DASHBOARDS = {
    "pager": ("Funnelcast: pager", "Is it healthy, what is slow, what is lost.", PAGER),
    "model": ("Funnelcast: model", "What the network says, whether it is still right, how it runs.", MODEL),
    "marketer": ("Funnelcast: marketer", "The funnel, the campaigns, and whether they work.", MARKETER),
}


def written() -> dict[Path, str]:
    """Return each file with its content."""
    texts = {
        name: JSONEncoder(sort_keys=True, indent=2).encode(_board(name, *rest).build()) + "\n"
        for name, rest in DASHBOARDS.items()
    }
    return {folder / f"{name}.json": text for folder in FOLDERS for name, text in texts.items()}


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
    if panel.unit == "short" and panel.kind in ("number", "bars"):
        built = built.decimals(0)  # counts, which Prometheus extrapolates to fractions
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
