"""Laws of virtual users: one seed, one crowd; the network decides what comes next; the refiner is the classifier's."""

import argparse
import gzip
import json
import subprocess
import sys
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from model.contract.bundle import SHIPPED, load_bundle, pad
from model.contract.errors import FunnelcastError
from model.contract.events import SESSION_END, TYPES
from model.contract.graph import softmax
from model.contract.pool import Pool
from model.contract.rows import Array
from model.datasets import read_columns, read_log
from model.histories import Written, replay
from model.offline.answers import inputs_of, open_session
from model.segments import Segment
from model.virtual import command
from model.virtual.detector import fit_detector, judge, refiner_of
from model.virtual.habits import load_habits
from model.virtual.journeys import Generator
from model.virtual.refine import odds, path_of
from model.virtual.statistics import common_trigrams, statistics
from tests.support.logs import clicks, write


def simulate(out: Path, *options: str) -> Path:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    assert command.run(parser.parse_args(["--users", "5", "--out", str(out), "--no-progress", *options])) == 0
    return out


def test_the_same_seed_gives_the_same_file_and_another_seed_another(tmp_path: Path) -> None:
    first = simulate(tmp_path / "a.jsonl.gz", "--seed", "3").read_bytes()
    assert first == simulate(tmp_path / "b.jsonl.gz", "--seed", "3").read_bytes()
    assert first != simulate(tmp_path / "c.jsonl.gz", "--seed", "4").read_bytes()
    plain = simulate(tmp_path / "d.jsonl", "--seed", "3").read_bytes()
    assert gzip.decompress(first) == plain


def test_both_formats_hold_the_same_events_which_every_reader_of_logs_takes(tmp_path: Path) -> None:
    lines = clicks(read_log(simulate(tmp_path / "a.jsonl", "--start", "2026-01-31")))
    assert lines == clicks(read_log(simulate(tmp_path / "a.csv", "--start", "2026-01-31")))
    assert len({event.user_id for event in lines}) == 5
    assert min(event.timestamp for event in lines) >= 1_769_817_600_000
    for one, after in pairwise(lines):
        assert one.user_id != after.user_id or one.timestamp <= after.timestamp


def test_a_journey_does_not_depend_on_who_walks_beside_it() -> None:
    bundle, habits = load_bundle(SHIPPED), load_habits(command.TAOBAO)
    alone, many = (list(islice(Generator(bundle, habits, 1).walk(together=t), 4)) for t in (1, 3))
    assert alone == many
    assert next(Generator(bundle, habits, 1).walk(first=3, together=1)) == many[3]


class Watched(Generator):
    """Remembers what the network forecast after every row."""

    said: list[Array]

    def _forecast(self, rows: Written, pool: Pool) -> Array:
        chances = super()._forecast(rows, pool)
        self.said.extend(chances)
        return chances


def test_what_comes_next_is_drawn_from_what_the_whole_graph_says_of_the_journey_so_far(tmp_path: Path) -> None:
    bundle = load_bundle(SHIPPED)
    generator = Watched(bundle, load_habits(command.TAOBAO), 2)
    generator.said = []
    journey = next(generator.walk(together=1))
    with command.open_whole(tmp_path / "log.jsonl") as file:
        command.Lines(file, "jsonl")(command.events_of(journey, "u"))
    histories = replay(read_columns(read_log(tmp_path / "log.jsonl")), None, False)
    rows = min(len(histories.ts), 500)
    feed = pad(inputs_of(histories, [Segment(0, 0, 0, rows)]), [0], 512, bundle.contract.vocabulary)
    (next_type,) = open_session(bundle).run(("next_type",), feed)
    expected = softmax(next_type[0, :rows]) * generator._allowed
    expected /= expected.sum(-1, keepdims=True)
    np.testing.assert_allclose(np.array(generator.said)[:rows], expected, atol=1e-5)
    assert [TYPES[code] for code in journey.type] == [
        TYPES[code] for code in histories.type.tolist() if code != SESSION_END
    ]


def test_the_refiner_gives_the_odds_of_the_classifier_that_it_was_made_of() -> None:
    draw = np.random.default_rng(0)
    real, virtual = draw.normal(0.5, 1, (150, 6)), draw.normal(0, 1, (150, 6))
    model = fit_detector(real, virtual, 0, 30)
    refiner = refiner_of(model, virtual, [])
    np.testing.assert_allclose(odds(refiner, real), model.decision_function(real), atol=1e-4)


def test_a_detector_finds_a_difference_and_none_where_there_is_none_and_rejection_lowers_it() -> None:
    draw = np.random.default_rng(1)
    real, same, other = (draw.normal(m, 1, (1200, 2)) for m in (0, 0, 0.8))
    fair = judge(fit_detector(real[:600], same[:600], 0, 60), real[600:], same[600:], 0)
    found = judge(fit_detector(real[:600], other[:600], 0, 60), real[600:], other[600:], 0)
    assert fair["interval"][0] < 0.5 < fair["interval"][1]
    assert found["interval"][0] > 0.65
    refiner = refiner_of(fit_detector(real[:600], other[:600], 0, 60), other[:600], [])
    more = draw.normal(0.8, 1, (6000, 2))
    kept = more[draw.random(6000) < np.exp(np.minimum(0, odds(refiner, more) - refiner.ceiling))]
    half = len(kept) // 2
    after = judge(fit_detector(real[:600], kept[:half], 0, 60), real[600:], kept[half:], 0)
    assert after["auc"] < found["auc"] - 0.05
    score = np.concatenate([real[600:, 0], other[600:, 0]])
    assert roc_auc_score(np.repeat([0, 1], 600), score) > 0.65


def real_log(folder: Path) -> Path:
    draw, lines = np.random.default_rng(0), []
    for user in range(90):
        at = 1_511_600_000
        for _ in range(int(draw.integers(10, 40))):
            at += int(draw.choice([40, 300, 20_000]))
            kind = draw.choice(["pv", "pv", "pv", "cart", "buy"])
            lines.append(f"u{user},{draw.integers(1, 500)},{draw.integers(1, 20)},{kind},{at}")
    return write(folder, "\n".join(lines) + "\n")


def test_habits_are_fitted_judged_and_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, habits = real_log(tmp_path), tmp_path / "shop.json"
    options = ("--like", str(log), "--habits", str(habits), "--judges", "20")
    simulate(tmp_path / "out.jsonl", *options)
    report = json.loads((tmp_path / "shop-report.json").read_text())
    for name in ("before", "after"):
        low, high = report[name]["interval"]
        assert 0 <= low <= report[name]["auc"] <= high <= 1
    assert 0 < report["kept"] <= 1
    assert "before refinement" in capsys.readouterr().out
    fitted = load_habits(habits)
    assert set(fitted.types) == {"product_view", "cart_add", "order"}
    assert fitted.refiner is not None
    assert sum(users for _, _, users in fitted.visits) + report["held_users"] == 90
    events = clicks(read_log(tmp_path / "out.jsonl"))
    assert {event.category for event in events} <= {str(category) for category in range(1, 20)}
    raw = clicks(read_log(simulate(tmp_path / "raw.jsonl", "--habits", str(habits), "--raw")))
    assert {event.event for event in raw} <= set(fitted.types)


def test_statistics_are_finite_for_journeys_of_any_length() -> None:
    bundle, habits = load_bundle(SHIPPED), load_habits(command.TAOBAO)
    paths = [path_of(journey) for journey in islice(Generator(bundle, habits, 0).walk(together=4), 6)]
    trigrams = common_trigrams(paths)
    for path in paths:
        for length in (1, 2, len(path.ts)):
            short = path._replace(**{name: getattr(path, name)[:length] for name in path._fields})
            assert np.isfinite(statistics(short, trigrams, habits.start_ms)).all()


def test_to_simulate_neither_torch_nor_scikit_learn_is_needed(tmp_path: Path) -> None:
    script = f"""
import sys
sys.modules.update(dict.fromkeys(["torch", "sklearn", "matplotlib", "pyarrow"]))
from worker.cli import main
sys.exit(main(["simulate", "--users", "2", "--out", {str(tmp_path / "out.csv")!r}, "--no-progress"]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "neither --users nor --like"),
        (["--users", "3"], "found one of --users and --out"),
        (["--like", "log.csv"], "found --like without --habits"),
        (["--users", "3", "--out", "x.csv", "--habits", "none.json"], "no habits in none.json"),
    ],
)
def test_what_cannot_be_simulated_is_told(words: list[str], said: str) -> None:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    with pytest.raises(FunnelcastError, match=said):
        command.run(parser.parse_args(words))
