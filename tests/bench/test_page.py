import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.bench.measure import ROOT, Unable, Watch, median_run, percentiles
from tests.bench.page import NAMES, page, read
from tests.bench.readme import BEGIN, END, filled

MACHINE = {"processor": "Some <CPU>", "cpus": 2, "memory_gib": 24, "system": "Linux"}
CHECK = {"read": 50_000, "lost_or_repeated": 0}


def result(name: str, systems: dict[str, Any], **more: Any) -> dict[str, Any]:
    options = {"events": 1000, "repeats": 3, "systems": list(systems)}
    common = {"benchmark": name, "date": "2026-01-01 10:00 UTC", "quick": False, "options": options, "machine": MACHINE}
    return {**common, "versions": {"python": "3.11"}, "minutes": 1.5, "systems": systems, **more}


def drained(rate: int, title: str = "Funnelcast") -> dict[str, Any]:
    rates = {"events_per_second": rate, "events_per_second_min_max": [rate - 9, rate + 9], "cpu_us_per_event": 11.5}
    return {
        "title": title, "includes": "what it does", "cpu_share": 0.9, "other_cpu_share": 0.1, "rss_mb": 300,
        "check": CHECK, **rates,
    }  # fmt: skip


def load(percent: int) -> dict[str, Any]:
    times = {"p50_ms": 20.0 + percent, "p90_ms": 40.0 + percent, "p99_ms": 90.0 + percent, "max_ms": 120.0 + percent}
    return {
        "load_percent": percent, "events_per_second": 200 * percent, **times, "uncommitted": times,
        "uncommitted_ahead": times, "p50_ms_min_max": [20.0, 20.5 + percent], "waiting_at_end": 3, "unanswered": 0,
        "used": {"cpu_share": 0.5},
    }  # fmt: skip


def results() -> dict[str, Any]:
    """Results of the shape that the scripts write."""
    rates = {"batch": 32, "events_per_second": 60_000, "us_per_event": 16.7}
    hot = [{"history": length, **rates} for length in (64, 512, 2048)]
    rates = {"drained": {"events_per_second": 33_000}, "sustained": {"events_per_second": 20_000}}
    model = {"title": "With model", "includes": "all", **rates, "loads": [load(10), load(50)]}
    table = {"users": 100, "rows": 300, "keys": 250, "mb": 1, "partitions": 4}
    recovered = {"rows_per_second": 51_234, "rows_per_second_start_included": 40_000, "table": table}
    ready = {
        "ready_seconds_state_wiped": 9.5,
        "ready_seconds_state_kept": 4.5,
        "title": "Funnelcast",
        "includes": "until ready",
    }
    memory = {"users": 64, "state_bytes": 131_328, "rss_mb": 300, "rows_per_user": 64, "pool_mib": 8}
    memory |= {"hot_state_kib_per_user": 128.3, "sequences_kib_per_user": 5.4}
    fields = ("us_per_event", "us_per_event_rebasing_apart", "network_us_per_event", "table_us_per_event")
    history = [{"history": length, **dict.fromkeys(fields, 30.0)} for length in (10, 1000)]
    one = {"title": "Funnelcast", "includes": "the path"}
    unable = {"title": "Quix Streams", "includes": "lighter", "could_not_run": "its environment is <missing>"}
    peers = {"funnelcast": drained(90_000), "faust": drained(1_500, "Stock Faust"), "quix": unable}
    return {
        "ingest": result("ingest", peers, ratios={"faust": 60.0}),
        "scoring": result(
            "scoring", {"hot_state": {"title": "Hot state", "includes": "all", "figures": hot}},
            ratios={"hot_state_to_whole_sequence_512": 271.0},
        ),
        "latency": result("latency", {"funnelcast_model": model}, sustained_events_per_second=20_000),
        "recovery": result("recovery", {"funnelcast": recovered | ready}),
        "memory": result("memory", {"funnelcast": one | {"figures": [memory | {"users": 0}, memory]}}),
        "history": result("history", {"funnelcast": one | {"figures": history}}),
    }  # fmt: skip


def text_of(found: str) -> str:
    return re.sub(r"<[^>]*>", " ", found)


def test_the_page_shows_the_figures_of_every_benchmark() -> None:
    text = text_of(page(results()))
    figures = (
        "90,000",
        "60 ×",
        "1,500",
        "271 ×",
        "20,000",
        "33,000",
        "70 / 140 ms",
        "51,234",
        "128.3 KiB",
        "0 of 50,000",
    )
    for figure in figures:
        assert figure in text, figure


def test_a_system_that_could_not_run_is_on_the_page_with_its_reason() -> None:
    assert "could not run: its environment is &lt;missing&gt;" in page(results())


def test_the_page_says_what_was_not_measured_and_what_was_a_smoke_test() -> None:
    found = results()
    del found["memory"]
    found["recovery"]["quick"] = True
    text = text_of(page(found))
    assert "Not measured: memory." in text
    assert "Smoke test (recovery)" in text
    assert "Memory by hot users" not in text


def test_the_page_needs_nothing_from_elsewhere() -> None:
    found = page(results())
    assert found.count("<svg") == 5
    assert not re.search(r"""(?:src|href)=["']?(?!#)[^"'#\s>]""", re.sub(r"xlink:href=\"#", "", found))
    ids = re.findall(r'<clipPath id="([^"]+)"', found)
    assert len(ids) == len(set(ids))


def test_the_median_run_carries_the_spread_of_all() -> None:
    runs = [{"events_per_second": rate, "cpu": cpu} for rate, cpu in ((5, "a"), (9, "b"), (6, "c"))]
    found = median_run(runs)
    assert (found["cpu"], found["events_per_second_min_max"], found["repeats"]) == ("c", [5, 9], 3)


def test_percentiles_are_of_all_values() -> None:
    assert percentiles(range(101)) == {"p50_ms": 50.0, "p90_ms": 90.0, "p99_ms": 99.0, "max_ms": 100.0}


class Ended:
    """A program that has ended."""

    def alive(self) -> None:
        raise Unable("it ended with code 1")


def test_a_system_that_ends_before_its_first_answer_is_unable() -> None:
    with pytest.raises(Unable, match="code 1"):
        Watch(Ended(), lambda: 0).window(0, 0, 10)  # type: ignore[arg-type]


def test_a_benchmark_ends_with_one_json_object_and_a_file_that_the_page_reads(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.bench.history", "--quick", "--users", "4"]
    ran = subprocess.run([*command, "--out", str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout.splitlines()[-1])
    assert said == read(tmp_path)["history"]
    assert said["quick"] and {"machine", "versions", "date"} < set(said)
    assert [one["history"] for one in said["systems"]["funnelcast"]["figures"]] == [10, 100, 1000]
    assert all(one["us_per_event"] > 0 for one in said["systems"]["funnelcast"]["figures"])
    assert "Cost by length of history" in page(read(tmp_path))


def test_the_readme_names_every_benchmark() -> None:
    readme = (ROOT / "README.md").read_text()
    assert all(f"tests.bench.{name}`" in readme for name in NAMES)


def test_the_readme_gets_the_figures_between_its_marks_and_nothing_else() -> None:
    before = f"a\n{BEGIN}\nold\n{END}\nz\n"
    after = filled(before, results())
    assert after.startswith(f"a\n{BEGIN}\n") and after.endswith(f"{END}\nz\n") and "old" not in after
    for figure in ("90,000", "Stock Faust 1,500 (60 ×)", "70 / 140", "51,234"):
        assert figure in after, figure


def test_figures_of_a_smoke_test_never_get_into_the_readme() -> None:
    found = results()
    found["memory"]["quick"] = True
    with pytest.raises(SystemExit, match="memory"):
        filled(f"{BEGIN}\n{END}", found)
