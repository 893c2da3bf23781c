"""Laws of offline scoring: one line per event and session end, whoever shares the work, and refusals that help."""

import argparse
import csv
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.contract.bundle import SHIPPED, load_bundle
from model.contract.errors import FunnelcastError
from model.contract.rows import GAP_MS, LATE_MS, RING, Array, Inputs
from model.contract.sequence import REVISED, Events, Sequences, default_rules
from model.datasets import event_time_order, read_columns, read_log
from model.offline import command, output
from model.offline.output import COLUMNS, quoted
from tests.support.logs import write

START = 1_511_600_000  # within the days of the public log whose format is used


def events(users: int, each: int, seed: int = 0) -> list[str]:
    """Return lines of a Taobao log, not in event-time order."""
    draw = np.random.default_rng(seed)
    kinds = ("pv", "pv", "pv", "cart", "fav", "buy")
    return [
        f"{draw.integers(users)},{draw.integers(1, 99)},{draw.integers(1, 9)},{draw.choice(kinds)},"
        f"{START + draw.integers(3 * 86_400)}"
        for _ in range(users * each)
    ]


def score(log: Path, out: Path, *options: str) -> list[dict[str, str]]:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    assert (
        command.run(parser.parse_args([str(log), "--out", str(out), "--no-progress", "--processes", "1", *options]))
        == 0
    )
    with out.open(newline="") as file:
        return list(csv.DictReader(file))


def probabilities(lines: list[dict[str, str]]) -> Array:
    return np.array([[float(line[name]) for name in COLUMNS[4:]] for line in lines])


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("log"), "\n".join(events(users=30, each=12)) + "\n")


@pytest.fixture(scope="module")
def lines(log: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    return score(log, tmp_path_factory.mktemp("scores") / "scores.csv")


def test_every_event_has_its_line_in_input_order_and_a_session_end_follows_its_event(
    log: Path, lines: list[dict[str, str]]
) -> None:
    source = [line.split(",") for line in log.read_text().splitlines()]
    assert [int(line["row"]) for line in lines if line["kind"] == "event"] == list(range(len(source)))
    ends = 0
    for before, line in pairwise(lines):
        if line["kind"] == "session_end":
            assert (before["kind"], before["row"]) == ("event", line["row"])
            ends += 1
        user, at = source[int(line["row"])][0], int(source[int(line["row"])][4]) * 1000
        assert line["user_id"] == user
        assert int(line["timestamp"]) == at + (GAP_MS if line["kind"] == "session_end" else 0)
    assert ends > 100


def test_a_session_has_an_end_exactly_where_its_silence_lies_within_the_log(
    log: Path, lines: list[dict[str, str]]
) -> None:
    source = [line.split(",") for line in log.read_text().splitlines()]
    times: dict[str, list[tuple[int, int]]] = {}
    for row, (user, *_, at) in enumerate(source):
        times.setdefault(user, []).append((int(at) * 1000, row))
    last, expected = max(int(row[4]) for row in source) * 1000, set()
    for mine in map(sorted, times.values()):
        expected |= {row for (at, row), (then, _) in pairwise(mine) if then - at > GAP_MS}
        if mine[-1][0] + GAP_MS + LATE_MS <= last:
            expected.add(mine[-1][1])
    assert {int(line["row"]) for line in lines if line["kind"] == "session_end"} == expected


def test_scores_are_those_of_the_workers_fold_and_scorer_at_every_event_and_session_end(
    tmp_path: Path, log: Path, lines: list[dict[str, str]]
) -> None:
    """One user's rows leave the ring, so that the cut of long sequences is held to the worker's too."""
    long = [f"long,{n % 50},{n % 7},{('pv', 'cart')[n % 5 == 0]},{START + 40 * n}" for n in range(2 * RING + 300)]
    path = write(tmp_path, "\n".join([*log.read_text().splitlines(), *long]) + "\n")
    mine = score(path, tmp_path / "scores.csv")
    places = [(line["user_id"], line["kind"], line["row"]) for line in mine]
    found = dict(zip(places, probabilities(mine), strict=True))
    expected = worker_scores(path)
    assert found.keys() == expected.keys()
    worst = max(float(np.abs(found[key] - expected[key]).max()) for key in found)
    assert worst < 1e-5


def worker_scores(path: Path) -> dict[tuple[str, str, str], Array]:
    """Fold a log chunk by chunk and score each block, with the worker's own scorer."""
    from worker.scorer import Scorer

    columns, scorer = read_columns(read_log(path, "taobao")), Scorer(load_bundle(SHIPPED))
    sequences = Sequences(default_rules())
    slots, order = sequences.slots_of([user.encode() for user in columns.users]), event_time_order(columns)
    fields = (columns.ts, columns.type, columns.item, columns.category, columns.price, columns.id)
    expected: dict[tuple[str, str, str], Array] = {}
    latest: dict[str, int] = {}

    def keep(block: Any, inputs: Inputs, at: Array) -> None:
        assert not (block.kind == REVISED).any()
        (scores,) = scorer.score([inputs])
        for i, reach in enumerate(scores.reach):
            user = sequences.key_of(int(block.slot[i])).decode()
            kind = "event" if block.source[i] >= 0 else "session_end"
            if kind == "event":
                latest[user] = int(columns.row[at[block.source[i]]])
            expected[user, kind, str(latest[user])] = reach[:, 1:].ravel()

    for begin in range(0, len(order), 499):
        at = order[begin : begin + 499]
        for block in sequences.fold(Events(slots[columns.user[at]], *(field[at] for field in fields))):
            keep(block, sequences.inputs(block), at)
    for block in sequences.close_due(sequences.streams[0]):
        keep(block, sequences.inputs(block), order)
    return expected


def test_several_processes_and_merging_in_small_windows_give_the_same_bytes(
    tmp_path: Path, log: Path, lines: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "WINDOW", 7)
    assert score(log, tmp_path / "two.csv", "--processes", "2") == lines
    assert [path.name for path in tmp_path.iterdir()] == ["two.csv"]


def test_parquet_holds_what_csv_shows(tmp_path: Path, log: Path, lines: list[dict[str, str]]) -> None:
    from pyarrow import parquet

    out = tmp_path / "scores.parquet"
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    command.run(parser.parse_args([str(log), "--out", str(out), "--no-progress", "--processes", "1"]))
    table = parquet.read_table(out)
    assert table.column_names == list(COLUMNS)
    for name in COLUMNS[:4]:
        assert [str(value) for value in table[name].to_pylist()] == [line[name] for line in lines]
    found = np.stack([table[name].to_numpy() for name in COLUMNS[4:]], 1)
    np.testing.assert_allclose(found, probabilities(lines), atol=1e-6)


def test_a_log_with_a_header_and_columns_of_its_own_counts_its_lines_from_the_header(tmp_path: Path) -> None:
    text = 'who,when,what,kind\na,1700000000,7,view\n"b,c",1700000100,8,buy\n'
    mapping = "user_id=who,timestamp=when,category=what,event=kind"
    options = ("--format", "csv", "--map", mapping, "--events", "view=product_view,buy=order")
    found = score(write(tmp_path, text), tmp_path / "scores.csv", *options)
    assert [(line["row"], line["user_id"]) for line in found] == [("1", "a"), ("2", "b,c")]
    assert quoted('a "b"\n') == '"a ""b""\n"'


def test_scoring_needs_no_torch(tmp_path: Path, log: Path) -> None:
    script = f"""
import sys
sys.modules["torch"] = sys.modules["reformer_pytorch"] = None
from worker.cli import main
sys.exit(main(["score", {str(log)!r}, "--out", {str(tmp_path / "scores.csv")!r}, "--processes", "1"]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "lines written to" in done.stdout


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("scores.txt", "ends in .txt, expected .csv or .parquet"),
        ("scores", "ends in no suffix"),
        ("missing/scores.csv", "cannot write .*missing.*choose another --out"),
        ("taken.csv", "cannot write .*it is a directory"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_the_log_is_read(
    tmp_path: Path, log: Path, out: str, said: str
) -> None:
    (tmp_path / "taken.csv").mkdir()
    with pytest.raises(FunnelcastError, match=said):
        score(log, tmp_path / out)
    assert [path.name for path in tmp_path.iterdir()] == ["taken.csv"]


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("a,b\n1,2\n", ("--format", "csv"), "user_id"),
        ("1,2,3,nothing,99\n", ("--format", "taobao"), "Expected events"),
    ],
)
def test_a_log_without_the_columns_or_without_an_event_is_refused(
    tmp_path: Path, text: str, options: tuple[str, ...], said: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(FunnelcastError, match=said):
        score(path, tmp_path / "scores.csv", *options)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_missing_bundle_is_refused(tmp_path: Path, log: Path) -> None:
    with pytest.raises(FunnelcastError, match=r"no readable provenance\.json"):
        score(log, tmp_path / "scores.csv", "--bundle", str(tmp_path))
