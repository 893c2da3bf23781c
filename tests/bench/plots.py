"""The plots of the page: results in, inline SVG out. One colour per system, ours strong."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

Figures = dict[str, Any]

OURS, INK, GRID = "#1559c0", "#1b2330", "#e3e7ee"
COLOURS = {
    "funnelcast": OURS, "funnelcast_model": OURS, "hot_state": OURS, "hot_state_base": "#7fa9e6",
    "kafka_streams": "#c2571a", "kafka_streams_cached": "#e0a06f", "kafka_streams_exactly_once": "#8c2f39",
    "faust": "#4d8f5b", "bytewax": "#8a63b8", "quix": "#b8860b", "plain_loop": "#9aa3b2",
    "lstm": "#4d8f5b", "full_attention": "#c2571a", "full_attention_cached": "#e0a06f", "whole_sequence": "#8a63b8",
    "library_reformer": "#8c2f39", "skewed": "#4c83d6", "skewed_by_steps": "#b9c6dc",
}  # fmt: skip
STYLE = {
    "svg.fonttype": "none", "font.family": "DejaVu Sans", "font.size": 9, "axes.edgecolor": "#aab2c0",
    "axes.labelcolor": INK, "text.color": INK, "xtick.color": INK, "ytick.color": INK, "axes.grid": True,
    "grid.color": GRID, "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False,
    "axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlelocation": "left", "legend.frameon": False,
}  # fmt: skip


def number(value: float) -> str:
    """Write a number with as many digits as can be read: 91,000 or 3.25."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def svg(figure: Figure, name: str) -> str:
    """Return the figure as an SVG element whose ids are its own."""
    to = io.StringIO()
    with mpl.rc_context(STYLE | {"svg.hashsalt": name}):
        figure.savefig(to, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
    text = to.getvalue()
    return text[text.index("<svg") :]


def panels(count: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, [figure.add_subplot(1, count, place + 1) for place in range(count)]


def drawn(function: Any) -> Any:
    """Draw with the page's style."""

    def draw(*args: Any) -> str:
        with mpl.rc_context(STYLE):
            return svg(function(*args), function.__name__)

    return draw


@drawn
def ingest(systems: dict[str, Figures]) -> Figure:
    """Bars of the rate, with its spread, and of the CPU per event; the fastest on top."""
    ran = sorted((name for name in systems if "check" in systems[name]), key=_rate(systems))
    figure, (rates, cpu) = panels(2, 10.5, 0.42 * len(ran) + 1.1)
    colours = [COLOURS[name] for name in ran]
    values = [systems[name]["events_per_second"] for name in ran]
    spread = [systems[name]["events_per_second_min_max"] for name in ran]
    low = [value - one[0] for value, one in zip(values, spread, strict=True)]
    high = [one[1] - value for value, one in zip(values, spread, strict=True)]
    rates.barh(range(len(ran)), values, color=colours, xerr=[low, high], error_kw={"ecolor": INK, "capsize": 2})
    rates.set(title="events per second, one worker", yticks=range(len(ran)))
    rates.set_yticklabels([systems[name]["title"] for name in ran])
    spent = [systems[name]["cpu_us_per_event"] for name in ran]
    cpu.scatter(spent, range(len(ran)), color=colours, s=50)
    cpu.set_ylim(rates.get_ylim())
    cpu.set(title="CPU of its processes, µs per event", xscale="log", yticks=range(len(ran)))
    cpu.set_yticklabels([""] * len(ran))
    for axes, found, ends in ((rates, values, [one[1] for one in spread]), (cpu, spent, spent)):
        for place, (value, end) in enumerate(zip(found, ends, strict=True)):
            axes.annotate(number(value), (end, place), (7, 0), textcoords="offset points", va="center", fontsize=8)
        axes.grid(axis="y", visible=False)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
    rates.xaxis.set_major_locator(MaxNLocator(6))
    rates.margins(x=0.16)
    cpu.margins(x=0.12)
    cpu.xaxis.set_minor_formatter(NullFormatter())
    return figure


def _rate(systems: dict[str, Figures]) -> Any:
    return lambda name: systems[name]["events_per_second"]


@drawn
def scoring(systems: dict[str, Figures]) -> Figure:
    """Cost per event against the history, each at its best micro-batch, and against the micro-batch at 512 rows."""
    figure, (by_history, by_batch) = panels(2, 10.5, 3.9)
    lengths = sorted({one["history"] for found in systems.values() for one in found["figures"] if one["history"]})
    for name, found in systems.items():
        best = {
            length: min(o["us_per_event"] for o in found["figures"] if o["history"] in (length, None))
            for length in lengths
            if any(o["history"] in (length, None) for o in found["figures"])
        }
        style = _line(name)
        by_history.plot(list(best), list(best.values()), label=found["title"], **style)
        steps = [o for o in found["figures"] if o["history"] in (512, None)]
        if len(steps) > 1:
            by_batch.plot([o["batch"] for o in steps], [o["us_per_event"] for o in steps], **style)
    by_history.set(title="µs of one core per event", xlabel="rows of history", xscale="log", yscale="log")
    by_batch.set(
        title="the steps, by users in a micro-batch", xlabel="users, 512 rows each", xscale="log", yscale="log"
    )
    by_history.set_xticks(lengths, [str(length) for length in lengths])
    by_batch.set_xticks([1, 8, 32, 128, 512], ["1", "8", "32", "128", "512"])
    by_batch.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    for axes in (by_history, by_batch):
        _plain(axes)
    figure.legend(*by_history.get_legend_handles_labels(), loc="outside right center")
    return figure


@drawn
def latency(systems: dict[str, Figures]) -> Figure:
    """Percentiles by load: all of our own with the model, then p50 and p99 of everybody."""
    ran = {name: found for name, found in systems.items() if found.get("loads")}
    figure, axes = panels(3, 10.5, 3.7)
    first = next(iter(ran))
    for name, width in (("p50", 2.0), ("p90", 1.3), ("p99", 2.0)):
        x, y = _by_load(ran[first], name)
        axes[0].plot(x, y, color=OURS, lw=width, alpha=0.45 + 0.55 * (name == "p50"), marker="o", ms=3)
        axes[0].annotate(name, (x[0], y[0]), (-5, 0), textcoords="offset points", va="center", ha="right", fontsize=8)
    x, _ = _by_load(ran[first], "p50")
    early = [load["uncommitted"]["p50_ms"] for load in ran[first]["loads"]]
    axes[0].plot(x, early, color=OURS, lw=1, ls=":", label="p50, read_uncommitted")
    axes[0].legend(loc="best", fontsize=8)
    axes[0].set(title=f"{ran[first]['title']}, ms")
    for name, found in ran.items():
        style = _line(name) | ({"ls": "--"} if name == "funnelcast" else {})
        for place, percentile in ((1, "p50"), (2, "p99")):
            axes[place].plot(*_by_load(found, percentile), label=found["title"], **style)
    for place, percentile in ((1, "p50"), (2, "p99")):
        axes[place].set(title=f"{percentile}, ms")
    for one in axes:
        one.set(xlabel="load, events/s", yscale="log", xlim=(0, None))
        one.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        _plain(one)
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def _by_load(found: Figures, percentile: str) -> tuple[list[float], list[float]]:
    loads = found["loads"]
    return [load["events_per_second"] for load in loads], [load[f"{percentile}_ms"] for load in loads]


@drawn
def memory(figures: Sequence[Figures]) -> Figure:
    """Resident memory by hot users, and the pool's bytes as they are set."""
    figure, (axes,) = panels(1, 5.2, 3.3)
    users = [one["users"] for one in figures]
    axes.plot(users, [one["rss_mb"] for one in figures], color=OURS, marker="o", ms=4, label="resident, MB")
    pool = [one["users"] * one["state_bytes"] / 1e6 for one in figures]
    axes.plot(users, pool, color=INK, ls=":", label="of it the pool, as set")
    axes.set(title="MB", xlabel="users whose hot state is kept", ylim=(0, None), xlim=(0, None))
    axes.legend(loc="best")
    _plain(axes)
    return figure


@drawn
def history(figures: Sequence[Figures]) -> Figure:
    """Cost per event by length of history, with re-basing and apart from it."""
    figure, (axes,) = panels(1, 5.2, 3.3)
    lengths = [one["history"] for one in figures]
    for field, label, style in (
        ("us_per_event", "all, re-basing included", {"color": OURS, "lw": 2}),
        ("us_per_event_rebasing_apart", "all, re-basing apart", {"color": OURS, "lw": 1, "ls": "--"}),
        ("network_us_per_event", "of it hot state and network", {"color": "#8a63b8", "lw": 1}),
        ("table_us_per_event", "of it fold and table bytes", {"color": "#4d8f5b", "lw": 1}),
    ):
        axes.plot(lengths, [one[field] for one in figures], label=label, marker="o", ms=3, **style)
    axes.set(title="µs of one core per event", xlabel="events of history", xscale="log", ylim=(0, None))
    axes.legend(loc="best", fontsize=8)
    _plain(axes)
    return figure


def _line(name: str) -> dict[str, Any]:
    ours = COLOURS[name] == OURS
    return {"color": COLOURS[name], "lw": 2.4 if ours else 1.3, "marker": "o", "ms": 3.5, "zorder": 3 if ours else 2}


def _plain(axes: Axes) -> None:
    """Write ticks as plain numbers."""
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
        axis.set_minor_formatter(NullFormatter())
