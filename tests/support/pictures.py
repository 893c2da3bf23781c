"""Pictures of dashboards without Grafana: a dashboard's panels and Prometheus' answers in, one PNG out.

It shows the curves that the queries give, not Grafana's own rendering.
"""

from __future__ import annotations

import html
import math
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

BROWSER = "chromium-headless-shell"
WIDTH, HEIGHT, SHOWN = 420, 130, 8
COLOURS = ("#2b6cd4", "#c8372d", "#1c8a52", "#b8860b", "#7b4bc4", "#0e8a9a", "#d0559b", "#647084")
STYLE = """body{font:13px/1.35 DejaVu Sans,sans-serif;margin:14px;background:#f5f6f8;color:#1b2330}
main{display:grid;grid-template-columns:repeat(24,1fr);gap:10px} h2{grid-column:span 24;font-size:16px;margin:8px 0 0}
section{background:#fff;border:1px solid #dfe3ea;border-radius:8px;padding:8px 10px;min-width:0;overflow:hidden}
b{font-size:24px} small{color:#647084} svg{display:block;width:100%;height:130px}"""

Series = dict[str, Any]
Ask = Callable[[str], Sequence[Series]]


def take(dashboard: dict[str, Any], ask: Ask, out: Path) -> None:
    """Draw every panel with what `ask` answers to its queries; write out.html beside the PNG."""
    parts = [_panel(panel, ask) for panel in dashboard["panels"]]
    page = f"<meta charset=utf-8><style>{STYLE}</style><h1>{html.escape(dashboard['title'])}</h1><main>"
    source = out.with_suffix(".html")
    source.write_text(page + "".join(parts) + "</main>")
    bottom = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in dashboard["panels"])
    subprocess.run(
        [BROWSER, "--no-sandbox", "--disable-gpu", f"--user-data-dir={out.parent / 'browser'}",
         f"--window-size=1500,{100 + 36 * bottom}", f"--screenshot={out}", source.as_uri()],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip


def _panel(panel: dict[str, Any], ask: Ask) -> str:
    if panel["type"] == "row":
        return f"<h2>{html.escape(panel['title'])}</h2>"
    lines = [
        (_legend(target.get("legendFormat", ""), series["metric"]), _points(series))
        for target in panel["targets"]
        for series in ask(target["expr"])
    ]
    lines = [(legend, points) for legend, points in lines if points]
    unit = panel["fieldConfig"]["defaults"]["unit"]
    if panel["type"] in ("stat", "bargauge"):
        body = "<br>".join(f"{html.escape(legend)} <b>{_number(points[-1][1])}</b>" for legend, points in lines[:SHOWN])
    else:
        body = _curves(lines)
    title = f"{html.escape(panel['title'])} <small>{unit}, {len(lines)} series</small>"
    return f"<section style='grid-column:span {panel['gridPos']['w']}'>{title}<br>{body}</section>"


def _points(series: Series) -> list[tuple[float, float]]:
    return [(at, float(value)) for at, value in series["values"] if math.isfinite(float(value))]


def _legend(form: str, labels: dict[str, str]) -> str:
    for name, value in labels.items():
        form = form.replace(f"{{{{{name}}}}}", value)
    return form.replace("__auto", "")


def _curves(lines: list[tuple[str, list[tuple[float, float]]]]) -> str:
    if not lines:
        return "<b style='color:#c8372d'>no data</b>"
    values = [value for _, points in lines for _, value in points]
    times = [at for _, points in lines for at, _ in points]
    first, span, top = min(times), max(1e-9, max(times) - min(times)), max(1e-12, *values, 0)
    paths, legends = [], []
    for place, (legend, points) in enumerate(lines):
        colour = COLOURS[place % len(COLOURS)]
        path = " ".join(
            f"{WIDTH * (at - first) / span:.1f},{HEIGHT - 4 - (HEIGHT - 10) * value / top:.1f}" for at, value in points
        )
        paths.append(f"<polyline points='{path}' fill=none stroke='{colour}' stroke-width=1.5 />")
        legends.append(f"<span style='color:{colour}'>{html.escape(legend)} {_number(points[-1][1])}</span>")
    more = "" if len(legends) <= SHOWN else f" and {len(legends) - SHOWN} more"
    svg = f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' preserveAspectRatio=none>{''.join(paths)}</svg>"
    return f"<small>top {_number(top)}</small>{svg}<small>{', '.join(legends[:SHOWN])}{more}</small>"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
