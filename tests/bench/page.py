"""One self-contained HTML page of what the benchmarks found: the folder's JSON files in, its page.html out.

python -m tests.bench.page [--out build/bench]
"""

from __future__ import annotations

import argparse
import html
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tests.bench import plots
from tests.bench.measure import RESULTS, say
from tests.bench.plots import number

Figures = dict[str, Any]
NAMES = ("ingest", "scoring", "latency", "recovery", "memory", "history")
STYLE = """body{font:15px/1.5 system-ui,"DejaVu Sans",sans-serif;margin:0;background:#f4f6f9;color:#1b2330}
main{max-width:1120px;margin:0 auto;padding:24px} h1{font-size:26px;margin:0 0 4px} h2{font-size:19px;margin:0 0 6px}
section{background:#fff;border:1px solid #dfe4ec;border-radius:10px;padding:18px 22px;margin:16px 0;
overflow-x:auto}
p{margin:4px 0 10px;max-width:88ch} small,.dim{color:#5b6678}
svg{display:block;max-width:100%;height:auto;margin:8px 0}
table{border-collapse:collapse;font-size:13px;margin-top:8px;width:100%}
th{text-align:right;font-weight:600;color:#5b6678}
td,th{padding:4px 8px;border-bottom:1px solid #e8ecf2;vertical-align:top;text-align:right;white-space:nowrap}
th{white-space:normal;vertical-align:bottom}
td:first-child,th:first-child,td.text,th.text{text-align:left;white-space:normal} tr.ours td{background:#eef4fd}
td:first-child{min-width:130px} td.text{min-width:200px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(165px,1fr));gap:12px;margin:16px 0}
.tile{background:#fff;border:1px solid #dfe4ec;border-radius:10px;padding:12px 14px}
.tile b{display:block;font-size:24px}
.warn{background:#fff4e0;border:1px solid #f0c46c;border-radius:8px;padding:8px 12px;margin:12px 0}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(440px,1fr));gap:16px} .pair section{margin:0}"""


def page(results: dict[str, Figures]) -> str:
    """Return the page; a benchmark that has no results has no section."""
    body = [_head(results), _tiles(results)]
    body += [
        section(results[name]) for name, section in (("ingest", _ingest), ("scoring", _scoring)) if name in results
    ]
    body += [_latency(results["latency"])] if "latency" in results else []
    body += [_recovery(results["recovery"])] if "recovery" in results else []
    pair = [section(results[name]) for name, section in (("memory", _memory), ("history", _history)) if name in results]
    body.append(f"<div class=pair>{''.join(pair)}</div>")
    body.append(_conditions(results))
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>Funnelcast, measured</title><style>{STYLE}</style><main>{''.join(body)}</main></html>\n"
    )


def _head(results: dict[str, Figures]) -> str:
    machine = next(iter(results.values()))["machine"]
    text = (
        f"<h1>Funnelcast, measured</h1><p class=dim>{_e(machine['processor'])}, {machine['cpus']} CPUs, "
        f"{machine['memory_gib']} GiB; everything, Kafka and the measuring included, shares them.</p>"
    )
    quick = [name for name, found in results.items() if found["quick"]]
    if quick:
        text += f"<div class=warn>Smoke test ({', '.join(quick)}): too short to be figures of anything.</div>"
    missing = [name for name in NAMES if name not in results]
    if missing:
        text += f"<div class=warn>Not measured: {', '.join(missing)}.</div>"
    return text


def _tiles(results: dict[str, Figures]) -> str:
    tiles = []
    ingest = results.get("ingest", {})
    mine = ingest.get("systems", {}).get("funnelcast", {})
    if "events_per_second" in mine:
        faust = ingest["ratios"].get("faust")
        tiles.append((number(mine["events_per_second"]), "events/s without a model, one worker"))
        tiles += [(f"{number(faust)} ×", "the rate of stock Faust")] if faust else []
    if "scoring" in results:
        ratio = results["scoring"]["ratios"]["hot_state_to_whole_sequence_512"]
        tiles.append((f"{number(ratio)} ×", "scoring from hot state, to whole sequences of 512 rows"))
    model = results.get("latency", {}).get("systems", {}).get("funnelcast_model", {})
    if "sustained" in model:
        tiles.append((number(model["sustained"]["events_per_second"]), "live events/s with the shipped model"))
        half = min(model["loads"], key=lambda load: abs(load["load_percent"] - 50))
        text = f"p50 / p99 at {half['load_percent']} % of that, producer to reader"
        tiles.append((f"{number(half['p50_ms'])} / {number(half['p99_ms'])} ms", text))
    recovery = results.get("recovery", {}).get("systems", {}).get("funnelcast", {})
    if recovery.get("rows_per_second"):
        tiles.append((number(recovery["rows_per_second"]), "rows/s of rebuilding a lost table"))
    return "<div class=tiles>" + "".join(f"<div class=tile><b>{a}</b>{b}</div>" for a, b in tiles) + "</div>"


def _ingest(found: Figures) -> str:
    systems, ratios = found["systems"], found["ratios"]
    rows = []
    for name, one in sorted(systems.items(), key=lambda item: -item[1].get("events_per_second", -1)):
        if "could_not_run" in one:
            rows.append((name, _unable(one, 9)))
            continue
        check = one["check"]
        rows.append((name, _cells(
            one["title"], number(one["events_per_second"]), "–".join(map(number, one["events_per_second_min_max"])),
            f"{ratios[name]:.3g} ×" if name in ratios else "", one["cpu_us_per_event"], one["cpu_share"],
            one["other_cpu_share"], one["rss_mb"], f"{check['lost_or_repeated']} of {check['read']:,}",
        ) + f"<td class=text>{_e(one['includes'])}"))  # fmt: skip
    head = (
        "",
        "events/s",
        "spread",
        "ours is",
        "CPU µs",
        "CPUs",
        "others' CPUs",
        "RSS MB",
        "lost or repeated",
        "*includes",
    )
    return _section(
        "Ingest without a model",
        f"One worker of each drains the same backlog of {found['options']['events']:,} clicks from 4 partitions, in "
        f"turn, {found['options']['repeats']} times; medians, whiskers from least to most. Peers do a lighter job.",
        plots.ingest(systems) if any("check" in one for one in systems.values()) else "",
        _table(head, rows),
    )


def _scoring(found: Figures) -> str:
    rows = []
    for name, one in found["systems"].items():
        best: dict[int | None, float] = {}
        for figure in one["figures"]:
            best[figure["history"]] = max(best.get(figure["history"], 0), figure["events_per_second"])
        by_length = [number(best[length]) if length in best else "" for length in (64, 512, 2048)]
        if None in best:
            by_length = [number(best[None])] * 3
        rows.append((name, _cells(one["title"], *by_length) + f"<td class=text>{_e(one['includes'])}"))
    head = ("events/s of one core, best micro-batch", "64 rows", "512", "2,048", "*includes")
    return _section(
        "Scoring one new event",
        "CPU time of one thread. Hot state, cached keys and LSTM add one row to a state; the others read all rows.",
        plots.scoring(found["systems"]),
        _table(head, rows),
    )


def _latency(found: Figures) -> str:
    systems, rows = found["systems"], []
    for name, one in systems.items():
        if "could_not_run" in one:
            rows.append((name, _unable(one, 10)))
            continue
        for load in one["loads"]:
            rows.append((name, _cells(
                one["title"] if load is one["loads"][0] else "", f"{load['load_percent']} %",
                number(load["events_per_second"]), _spread(load), load["p90_ms"], load["p99_ms"], load["max_ms"],
                load["uncommitted_ahead"]["p50_ms"], f"{load['waiting_at_end']:,}", f"{load['unanswered']:,}",
                load["used"]["cpu_share"],
            )))  # fmt: skip
    figures = "p50 ms (rounds)", "p90 ms", "p99 ms", "max ms", "uncommitted is ahead, p50 ms"
    head = "", "load", "events/s", *figures, "waiting at the end", "never answered", "CPUs"
    text = (
        f"From the producer's time of a click to a read_committed reader that has its answer. 100 % is the sustained "
        f"rate with the model, {number(found['sustained_events_per_second'])} events/s: the highest at which live "
        f"clicks do not pile up."
    )
    model = systems.get("funnelcast_model", {})
    if "drained" in model:
        text += f" A backlog, which nobody adds to, is drained at {number(model['drained']['events_per_second'])}."
    if crowd := model.get("crowd"):
        text += (
            f" With {crowd['users']:,} users in turn, more than the default pool keeps, that is "
            f"{number(crowd['events_per_second'])} events/s: {crowd['hot_state_hit_share']:.0%} found their state."
        )
    plot = plots.latency(systems) if any("loads" in one for one in systems.values()) else ""
    return _section("End to end", text, plot, _table(head, rows))


def _spread(load: Figures) -> str:
    """Return the median p50 of a load, and that of its best and worst round."""
    low, high = load.get("p50_ms_min_max", [load["p50_ms"]] * 2)
    return f"{load['p50_ms']} ({low} to {high})" if low < high else f"{load['p50_ms']}"


def _recovery(found: Figures) -> str:
    one = found["systems"]["funnelcast"]
    if "could_not_run" in one:
        return _section("Recovery", f"Could not run: {one['could_not_run']}")
    table, rate = one["table"], one["rows_per_second"]
    rate = "too many to tell" if rate is None else number(rate)
    text = (
        f"A worker whose state directory is lost reads {table['rows']:,} changelog rows ({table['mb']} MB, "
        f"{table['users']:,} users) back: ready after {one['ready_seconds_state_wiped']} s, where the same worker with "
        f"its state takes {one['ready_seconds_state_kept']} s: {rate} rows/s, or "
        f"{number(one['rows_per_second_start_included'])} with the start of the process. {_sentence(one['includes'])}"
    )
    return _section("Recovery", text)


def _memory(found: Figures) -> str:
    one = found["systems"]["funnelcast"]
    last = one["figures"][-1]
    text = (
        f"{last['hot_state_kib_per_user']} KiB a hot user ({last['state_bytes']:,} bytes are set) and "
        f"{last['sequences_kib_per_user']} KiB of sequence ({last['rows_per_user']} rows). {_sentence(one['includes'])}"
    )
    return _section("Memory by hot users", text, plots.memory(one["figures"]))


def _history(found: Figures) -> str:
    one = found["systems"]["funnelcast"]
    return _section("Cost by length of history", _sentence(one["includes"]), plots.history(one["figures"]))


def _conditions(results: dict[str, Figures]) -> str:
    rows = [
        (name, _cells(name, found["date"], f"{found.get('minutes', '')} min")
         + f"<td class=text>{_e(', '.join(f'{a} {b}' for a, b in found['versions'].items()))}"
         + f"<td class=text>{_e(', '.join(_option(*one) for one in found['options'].items() if one[1] is not None))}")
        for name, found in results.items()
    ]  # fmt: skip
    table = _table(("", "when", "took", "*versions", "*options"), rows)
    return _section("Conditions", _e(next(iter(results.values()))["machine"]["system"]), table)


def _section(title: str, text: str, *parts: str) -> str:
    return f"<section><h2>{title}</h2><p>{text}</p>{''.join(parts)}</section>"


def _table(head: Sequence[str], rows: Iterable[tuple[str, str]]) -> str:
    """Make a table; a head that starts with * is of a column of text, and rows of ours stand out."""
    top = "".join(f"<th{' class=text' * name.startswith('*')}>{name.lstrip('*')}" for name in head)
    body = "".join(
        f"<tr{' class=ours' * (name in plots.COLOURS and plots.COLOURS[name] == plots.OURS)}>{cells}"
        for name, cells in rows
    )
    return f"<table><tr>{top}{body}</table>"


def _cells(*values: object) -> str:
    return "".join(f"<td>{_e(value)}" for value in values)


def _unable(one: Figures, columns: int) -> str:
    reason = f"could not run: {one['could_not_run']}"
    return f"<td>{_e(one['title'])}<td class=text colspan={columns}>{_e(reason)}"


def _option(name: str, value: object) -> str:
    return f"{name} {' '.join(map(str, value)) if isinstance(value, list) else value}"


def _sentence(text: str) -> str:
    return _e(f"{text[:1].upper()}{text[1:]}.")


def _e(value: object) -> str:
    return html.escape(str(value))


def read(folder: Path) -> dict[str, Figures]:
    """Return the results that are in a folder, by benchmark."""
    found = {name: folder / f"{name}.json" for name in NAMES}
    return {name: json.loads(path.read_text()) for name, path in found.items() if path.exists()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results and the page (build/bench)")
    args = parser.parse_args()
    results = read(args.out)
    if not results:
        parser.error(f"no results in {args.out}; make bench measures them")
    to = args.out / "page.html"
    to.write_text(page(results))
    say(f"a page of {', '.join(results)}:")
    print(to)


if __name__ == "__main__":
    main()
