"""Laws of prepared logs: the examples that reading the log would give, byte for byte; refusals that help."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from model import train
from model.contract.errors import FunnelcastError
from model.contract.rows import HOUR_MS, RING
from model.contract.stages import load_funnel
from model.contract.vocabulary import Vocabulary
from model.datasets import LogError, LogOptions, read_log
from model.evaluation import command as evaluation
from model.examples import Examples, at_most, read_examples
from model.prepared import command, folder, spill
from model.prepared.folder import Purpose, read_prepared
from tests.support.clicks import EXCERPT
from tests.support.logs import write

torch.set_num_threads(1)
PURPOSE = Purpose(load_funnel(None), 24 * HOUR_MS, Vocabulary())
START, DAY = 1_511_600_000, 86_400  # within the days of the public log whose format is used


def lines(users: int, each: int, seed: int = 0) -> Iterator[str]:
    """Yield lines of a Taobao log in no order, one user with more rows than the ring holds, some lines broken."""
    draw = np.random.default_rng(seed)
    for _ in range(users * each):
        kind = draw.choice(("pv", "pv", "pv", "cart", "fav", "buy"))
        at = START + draw.integers(4 * DAY)
        yield f"{draw.integers(users)},{draw.integers(1, 99)},{draw.integers(1, 9)},{kind},{at}"
    yield "not,a,row"
    for n in range(RING + 40):
        yield f"long,{n % 50},{n % 7},pv,{START + 60 * n}"
    yield f"early,1,1,pv,{START - 9 * DAY}"


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("log"), "\n".join(lines(users=60, each=25)) + "\n")


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Divide even a small log, and read it back in small parts."""
    monkeypatch.setattr(spill, "SHARD_EVENTS", 300)
    monkeypatch.setattr(spill, "PART_EVENTS", 111)


def run(module: ModuleType, log: Path, *words: object) -> None:
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    assert module.run(parser.parse_args([str(log), "--no-progress", *map(str, words)])) == 0


def differences(one: Examples, other: Examples) -> list[str]:
    """Name the fields that differ in a byte, a type or a shape."""
    arrays = zip(Examples._fields[1:], one[1:], other[1:], strict=True)
    same = {name: (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()) for name, a, b in arrays}
    return [name for name, equal in (same | {"users": one.users == other.users}).items() if not equal]


def own_log(path: Path) -> Path:
    """Write a log of a shop with prices, message ids that come twice, missing categories and months of silence."""
    draw, text = np.random.default_rng(5), ["user_id,event,timestamp,item_id,category,price,message_id"]
    for _ in range(2500):
        at = START + 60 * DAY * draw.integers(3) + draw.integers(2 * DAY)
        user, kind = f"u{draw.integers(80)}é", draw.choice(("product_view", "cart_add", "order"))
        item, category = f"i{draw.integers(50)}", draw.choice(("", "shoes", "Zelte ü"))
        text.append(f"{user},{kind},{at},{item},{category},{draw.integers(90)},m{draw.integers(2000)}")
    return write(path, "\n".join(text) + "\n", "own.csv")


@pytest.mark.parametrize("which", ["real", "synthetic", "own"])
def test_a_prepared_log_is_what_reading_the_log_gives_byte_for_byte(
    tmp_path: Path, log: Path, which: str, small_shards: None
) -> None:
    path = {"real": EXCERPT, "synthetic": log}.get(which) or own_log(tmp_path)
    form = "csv" if which == "own" else "taobao"
    source = read_log(path, form, LogOptions(progress=False))
    expected, data = read_examples(source, PURPOSE.funnel, PURPOSE.horizon_ms, PURPOSE.vocabulary, False)
    run(command, path, "--format", form, "--out", tmp_path / "prepared")
    found, about = read_prepared(tmp_path / "prepared", PURPOSE)
    assert len(expected.users) > 50
    assert differences(found, expected) == []
    assert about.data == data
    assert about.told == [source.summary(), *source.problems.lines()]
    kept = {path.name for path in (tmp_path / "prepared").iterdir()}
    assert kept == {folder.ABOUT, folder.USERS, *(f"{name}.npy" for name in ("start", *folder.ROWS))}


def test_no_more_than_a_shard_and_a_user_is_in_memory_at_once(tmp_path: Path, log: Path, small_shards: None) -> None:
    spilt = spill.Spill(read_log(log, "taobao", LogOptions(progress=False)), tmp_path)
    assert max(len(part) for part in spilt.parts()) == 111
    shards = list(spilt.shards())
    assert [user for shard in shards for user in shard.users] == spilt.users
    assert sum(len(shard.ts) for shard in shards) == spilt.events
    for shard in shards:
        most = np.bincount(shard.user).max()
        assert len(shard.users) == 1 or len(shard.ts) <= 300 + most
    assert len(shards) > 3
    assert not list(tmp_path.iterdir())


def test_training_and_evaluation_on_a_prepared_log_are_those_on_the_log(tmp_path: Path, log: Path) -> None:
    run(command, log, "--format", "taobao", "--out", tmp_path / "prepared", "--horizon-hours", "6")
    for name, words in (("log", [log, "--format", "taobao"]), ("prepared", [tmp_path / "prepared"])):
        asked = [*words, "--horizon-hours", "6"]
        run(train, *asked, "--out", tmp_path / name / "a", "--epochs", "1", "--name", "x")
        models = "--models", "markov,base_rate", "--resamples", "20", "--folds", "2"
        run(evaluation, *asked, "--out", tmp_path / name / "b", *models)
    for file in ("a/weights.pt", "a/metrics.json", "a/config.json"):
        assert (tmp_path / "log" / file).read_bytes() == (tmp_path / "prepared" / file).read_bytes(), file
    one, other = (json.loads((tmp_path / name / "b" / "metrics.json").read_text()) for name in ("log", "prepared"))
    assert one["data"] == other["data"]
    assert one["users"]["slices"] == other["users"]["slices"]


def test_what_training_writes_into_the_examples_never_reaches_the_disk(tmp_path: Path, log: Path) -> None:
    run(command, log, "--format", "taobao", "--out", tmp_path / "prepared")
    examples, _ = read_prepared(tmp_path / "prepared", PURPOSE)
    examples.reach[:] = 77
    assert not (read_prepared(tmp_path / "prepared", PURPOSE)[0].reach == 77).any()


def test_another_purpose_is_refused(tmp_path: Path, log: Path) -> None:
    run(command, log, "--format", "taobao", "--out", tmp_path / "prepared", "--horizon-hours", "6")
    with pytest.raises(FunnelcastError, match=r"another horizon_ms than asked for \(its is 6 h\); ask for the same"):
        run(train, tmp_path / "prepared", "--out", tmp_path / "run")
    with pytest.raises(FunnelcastError, match="found --where with a prepared log"):
        run(train, tmp_path / "prepared", "--out", tmp_path / "other", "--where", "event=order")


def test_a_log_without_events_and_a_used_directory_leave_nothing_behind(tmp_path: Path, log: Path) -> None:
    empty = write(tmp_path, "user_id,event,timestamp\nann,order,x\n", "empty.csv")
    with pytest.raises(LogError, match="Expected events"):
        run(command, empty, "--out", tmp_path / "prepared")
    assert not (tmp_path / "prepared").exists()
    with pytest.raises(FunnelcastError, match="is there already; give a new --out"):
        run(command, log, "--out", tmp_path)
    assert empty.exists()


def test_a_damaged_prepared_log_is_refused(tmp_path: Path, log: Path) -> None:
    run(command, log, "--format", "taobao", "--out", tmp_path / "prepared")
    (tmp_path / "prepared" / "reach.npy").write_bytes(b"")
    with pytest.raises(FunnelcastError, match=r"is no whole prepared log .*; prepare it again"):
        run(train, tmp_path / "prepared", "--out", tmp_path / "run")


def test_users_set_aside_are_thinned_only_where_they_have_too_many_rows(tmp_path: Path, log: Path) -> None:
    source = read_log(log, "taobao", LogOptions(progress=False))
    examples, _ = read_examples(source, PURPOSE.funnel, PURPOSE.horizon_ms, PURPOSE.vocabulary, False)
    users = list(range(0, 60, 2))
    rows = sum(map(examples.rows_of, users))
    assert at_most(rows, examples, users) == users
    some = at_most(rows // 5, examples, users)
    assert set(some) < set(users)
    assert 0.5 * rows / 5 < sum(map(examples.rows_of, some)) < 1.5 * rows / 5
