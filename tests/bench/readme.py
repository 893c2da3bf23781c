"""The README's table of figures: the folder's JSON files in, the lines between the README's two marks out.

python -m tests.bench.readme [--out build/bench]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.bench.measure import RESULTS, ROOT
from tests.bench.page import read
from tests.bench.plots import number

BEGIN, END = "<!-- figures: python -m tests.bench.readme -->", "<!-- end of figures -->"

Figures = dict[str, Any]


def filled(readme: str, results: dict[str, Figures]) -> str:
    """Return the README with the results between its marks."""
    if quick := [name for name, found in results.items() if found["quick"]]:
        raise SystemExit(f"these results are of a smoke test, expected whole runs; measure them again: {quick}")
    head, _, rest = readme.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{chr(10).join(table(results))}\n{END}{tail}"


def table(results: dict[str, Figures]) -> Iterator[str]:
    """Yield the lines of the table, one per benchmark that has results."""
    machine, dates = next(iter(results.values()))["machine"], [found["date"] for found in results.values()]
    yield f"{machine['processor']}, {machine['cpus']} CPUs that Kafka and the measuring share; {max(dates)}."
    yield ""
    yield "| | Funnelcast | beside it |"
    yield "|---|---|---|"
    rows = {"ingest": ingest, "scoring": scoring, "latency": latency, "recovery": recovery, "memory": memory}
    for name, row in (rows | {"history": history}).items():
        if name in results:
            yield from ("| " + " | ".join(cells) + " |" for cells in row(results[name]))


def ingest(found: Figures) -> Iterator[tuple[str, str, str]]:
    mine, peers = found["systems"]["funnelcast"], []
    for name, one in found["systems"].items():
        if "could_not_run" in one:
            peers.append(f"{one['title']} could not run")
        elif name in found["ratios"]:
            peers.append(f"{one['title']} {number(one['events_per_second'])} ({found['ratios'][name]:.3g} ×)")
    yield "ingest without a model, events/s of one worker", f"**{number(mine['events_per_second'])}**", "; ".join(peers)


def scoring(found: Figures) -> Iterator[tuple[str, str, str]]:
    best = {
        one["title"]: max(figure["events_per_second"] for figure in at)
        for one in found["systems"].values()
        if (at := [figure for figure in one["figures"] if figure["history"] in (512, None)])
    }
    mine = best.pop(found["systems"]["hot_state"]["title"])
    peers = "; ".join(f"{title} {number(rate)}" for title, rate in best.items())
    yield "scoring with 512 rows of history, events/s of one core", f"**{number(mine)}**", peers


def latency(found: Figures) -> Iterator[tuple[str, str, str]]:
    systems = dict(found["systems"])
    mine = systems.pop("funnelcast_model")
    crowd = mine.get("crowd")
    more = f"{number(mine['drained']['events_per_second'])} of a backlog"
    if crowd:
        more += f"; {number(crowd['events_per_second'])} with {crowd['users']:,} users, more than the pool keeps"
    rate = number(mine["sustained"]["events_per_second"])
    yield "live with the shipped model, events/s sustained", f"**{rate}**", more
    peers = "; ".join(f"{one['title']} {at_half(one)}" for one in systems.values() if one.get("loads"))
    yield "producer to reader at half of that, p50 / p99 ms", f"**{at_half(mine)}**", peers


def at_half(found: Figures) -> str:
    half = min(found["loads"], key=lambda load: abs(load["load_percent"] - 50))
    return f"{number(half['p50_ms'])} / {number(half['p99_ms'])}"


def recovery(found: Figures) -> Iterator[tuple[str, str, str]]:
    one = found["systems"]["funnelcast"]
    rate = one["rows_per_second"] or one["rows_per_second_start_included"]
    more = (
        f"{one['table']['rows']:,} rows; {number(one['rows_per_second_start_included'])} with the start of the process"
    )
    yield "rebuilding a lost table, rows/s", f"**{number(rate)}**", more


def memory(found: Figures) -> Iterator[tuple[str, str, str]]:
    last = found["systems"]["funnelcast"]["figures"][-1]
    more = f"and {last['sequences_kib_per_user']} for {last['rows_per_user']} rows of sequence"
    yield "resident memory per hot user, KiB", f"**{last['hot_state_kib_per_user']}**", more


def history(found: Figures) -> Iterator[tuple[str, str, str]]:
    first, last = (found["systems"]["funnelcast"]["figures"][place] for place in (0, -1))
    name = f"µs of one core per event after {first['history']:,} and {last['history']:,} events"
    more = f"{number(last['us_per_event_rebasing_apart'])} apart from re-basing"
    yield name, f"**{number(first['us_per_event'])}, {number(last['us_per_event'])}**", more


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results (build/bench)")
    args = parser.parse_args()
    results, readme = read(args.out), ROOT / "README.md"
    if not results:
        parser.error(f"no results in {args.out}; make bench measures them")
    readme.write_text(filled(readme.read_text(), results))


if __name__ == "__main__":
    main()
