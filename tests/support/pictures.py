"""Pictures of dashboards without Grafana: a dashboard's panels and Prometheus' answers in, one PNG out.

It shows the curves, bars and cells that the queries give, in Grafana's places, not Grafana's own rendering.
"""

from __future__ import annotations

import html
import itertools
import math
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageChops

BROWSER = "chromium-headless-shell"
WIDTH, HEIGHT, SHOWN = 420, 130, 12
TALLEST, MARGIN = 3000, 14  # pixels of a page, and below it
COLOURS = ("#2b6cd4", "#c8372d", "#1c8a52", "#b8860b", "#7b4bc4", "#0e8a9a", "#d0559b", "#647084")
STYLE = """body{font:13px/1.35 DejaVu Sans,sans-serif;margin:14px;background:#f5f6f8;color:#1b2330}
main{display:grid;grid-template-columns:repeat(24,1fr);gap:10px} h2{grid-column:span 24;font-size:16px;margin:8px 0 0}
section{background:#fff;border:1px solid #dfe3ea;border-radius:8px;padding:8px 10px;min-width:0;overflow:hidden}
b{font-size:24px} small{color:#647084} svg{display:block;width:100%;height:130px} i{display:block;height:10px}"""
STEPS = {"bytes": " MB", "Bps": " kB/s", "reqps": "/s", "ops": "/s"}

Series = dict[str, Any]
Ask = Callable[[str], Sequence[Series]]


class Line(NamedTuple):
    """One series that a panel shows."""

    legend: str
    labels: dict[str, str]
    points: list[tuple[float, float]]

    @property
    def last(self) -> float:
        return self.points[-1][1]


def take(dashboard: dict[str, Any], ask: Ask, out: Path) -> None:
    """Draw every panel with what `ask` answers to its queries; write out.html beside the PNG."""
    parts = [_panel(panel, ask) for panel in dashboard["panels"]]
    head = f"<meta charset=utf-8><style>{STYLE}</style><h1>{html.escape(dashboard['title'])}</h1><main>"
    source = out.with_suffix(".html")
    source.write_text(head + "".join(parts) + "</main>")
    subprocess.run(
        [BROWSER, "--no-sandbox", "--disable-gpu", f"--user-data-dir={out.parent / 'browser'}",
         f"--window-size=1500,{TALLEST}", "--hide-scrollbars", f"--screenshot={out}", source.as_uri()],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    page = Image.open(out).convert("RGB")
    box = ImageChops.difference(page, Image.new("RGB", page.size, page.getpixel((0, TALLEST - 1)))).getbbox()
    page.crop((0, 0, page.width, box[3] + MARGIN)).save(out)


def _panel(panel: dict[str, Any], ask: Ask) -> str:
    if panel["type"] == "row":
        return f"<h2>{html.escape(panel['title'])}</h2>"
    lines = [
        Line(_legend(target.get("legendFormat", ""), series["metric"]), series["metric"], _points(series))
        for target in panel["targets"]
        for series in ask(target["expr"])
    ]
    lines = [line for line in lines if line.points]
    if panel["fieldConfig"]["defaults"].get("decimals") == 0:
        lines = [line._replace(points=[(at, round(value)) for at, value in line.points]) for line in lines]
    unit = panel["fieldConfig"]["defaults"]["unit"]
    draw = {"stat": _numbers, "bargauge": _bars, "heatmap": _cells}.get(panel["type"], _curves)
    stacked = panel["fieldConfig"]["defaults"].get("custom", {}).get("stacking", {}).get("mode") == "normal"
    body = draw(_stack(lines) if stacked else lines, unit) if lines else "<b style='color:#c8372d'>no data</b>"
    return (
        f"<section style='grid-column:span {panel['gridPos']['w']}'>{html.escape(panel['title'])}<br>{body}</section>"
    )


def _points(series: Series) -> list[tuple[float, float]]:
    return [(at, float(value)) for at, value in series["values"] if math.isfinite(float(value))]


def _legend(form: str, labels: dict[str, str]) -> str:
    for name, value in labels.items():
        form = form.replace(f"{{{{{name}}}}}", value)
    return form.replace("__auto", "")


def _numbers(lines: list[Line], unit: str) -> str:
    return "<br>".join(f"{html.escape(line.legend)} <b>{_number(line.last, unit)}</b>" for line in lines[:SHOWN])


def _bars(lines: list[Line], unit: str) -> str:
    top = max(1e-12, *(line.last for line in lines), 0)
    return "".join(
        f"{html.escape(line.legend)} <small>{_number(line.last, unit)}</small>"
        f"<i style='width:{100 * line.last / top:.1f}%;background:{COLOURS[0]}'></i>"
        for line in lines[:SHOWN]
    )


def _cells(lines: list[Line], unit: str) -> str:
    """Draw cumulative counts by upper bound as cells, the lowest bound at the bottom."""
    bounds = sorted(lines, key=lambda line: float(line.labels["le"]))
    below: dict[float, float] = {}
    rows = []
    for line in bounds:
        rows.append([(at, max(0.0, value - below.get(at, 0.0))) for at, value in line.points])
        below = dict(line.points)
    times = sorted({at for row in rows for at, _ in row})
    top = max(1e-12, *(value for row in rows for _, value in row))
    wide, high = WIDTH / len(times), HEIGHT / len(rows)
    cells = [
        f"<rect x={wide * times.index(at):.1f} y={HEIGHT - high * (place + 1):.1f} width={wide + 0.3:.1f} "
        f"height={high:.1f} fill='{COLOURS[0]}' fill-opacity={value / top:.2f} />"
        for place, row in enumerate(rows)
        for at, value in row
    ]
    names = [_number(float(line.labels["le"]), unit) for line in bounds if line.labels["le"] != "+Inf"]
    return f"<small>up to {', '.join(names)} and above</small>{_svg(cells)}"


def _stack(lines: list[Line]) -> list[Line]:
    """Put each series upon those before it."""
    sums: dict[float, float] = {}
    stacked = []
    for line in lines:
        for at, value in line.points:
            sums[at] = sums.get(at, 0.0) + value
        stacked.append(line._replace(points=[(at, sums[at]) for at, _ in line.points]))
    own = {id(line.points): before.last for line, before in zip(stacked, lines, strict=True)}
    return [line._replace(legend=f"{line.legend}\0{own[id(line.points)]}") for line in stacked]


def _curves(lines: list[Line], unit: str) -> str:
    times = [at for line in lines for at, _ in line.points]
    first, span = min(times), max(1e-9, max(times) - min(times))
    top = max(1e-12, *(value for line in lines for _, value in line.points), 0)
    paths, legends = [], []
    for line, colour in zip(lines, itertools.cycle(COLOURS), strict=False):
        name, _, own = line.legend.partition("\0")
        path = " ".join(
            f"{WIDTH * (at - first) / span:.1f},{HEIGHT - 4 - (HEIGHT - 10) * value / top:.1f}"
            for at, value in line.points
        )
        paths.append(f"<polyline points='{path}' fill=none stroke='{colour}' stroke-width=1.5 />")
        value = _number(float(own) if own else line.last, unit)
        legends.append(f"<span style='color:{colour}'>{html.escape(name)} {value}</span>")
    more = "" if len(legends) <= SHOWN else f" and {len(legends) - SHOWN} more"
    return f"<small>top {_number(top, unit)}</small>{_svg(paths)}<small>{', '.join(legends[:SHOWN])}{more}</small>"


def _svg(parts: list[str]) -> str:
    return f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' preserveAspectRatio=none>{''.join(parts)}</svg>"


def _number(value: float, unit: str) -> str:
    """Word a value in its unit, as Grafana does."""
    if unit == "s":
        return f"{value:.3g} s" if value >= 1 else f"{1000 * value:.3g} ms"
    if unit == "percentunit":
        return f"{100 * value:.3g} %"
    value /= {"bytes": 1e6, "Bps": 1e3}.get(unit, 1)
    return (f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}") + STEPS.get(unit, "")
