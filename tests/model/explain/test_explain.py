"""Laws of explanations: an effect is what the log without the event would have given; attention is the network's."""

import argparse
import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from model.contract.bundle import SCOPES, SHIPPED, Calibration, Contract
from model.contract.errors import FunnelcastError
from model.contract.features import FEATURES
from model.contract.rows import Array, Rules
from model.contract.stages import STAGES, load_funnel
from model.datasets import read_columns, read_log
from model.explain import command
from model.explain.attend import last_row
from model.explain.population import Settings, asked, importance_of_features, importance_of_types, sample_of
from model.histories import replay
from model.labels import reach_labels
from model.offline import command as score_command
from model.reformer import ClickModel, ReformerConfig, Rows
from tests.support.logs import write

torch.set_num_threads(1)

START = 1_511_600_000
PNG = b"\x89PNG\r\n"


def lines(users: int = 12, each: int = 14, seed: int = 0) -> list[str]:
    draw = np.random.default_rng(seed)
    kinds = ("pv", "pv", "pv", "cart", "fav", "buy")
    return [
        f"u{user},{draw.integers(1, 99)},{draw.integers(1, 5)},{draw.choice(kinds)},{START + at}"
        for user in range(users)
        for at in np.sort(draw.choice(3 * 86_400, each, replace=False))
    ]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("log"), "\n".join(lines()) + "\n")


def explain(log: Path, out: Path, *options: str) -> dict:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    words = [str(log), "--out", str(out), "--no-progress", *options]
    assert command.run(parser.parse_args(words)) == 0
    (told,) = out.glob("*.json")
    assert told.with_suffix(".png").read_bytes().startswith(PNG)
    return dict(json.loads(told.read_text()))


def scored(log: Path, row: int, kind: str) -> Array:
    """Return what `funnelcast score` says of a line, interest to loyalty (2, 5)."""
    parser = argparse.ArgumentParser()
    score_command.add_arguments(parser)
    out = log.with_name("scores.csv")
    score_command.run(parser.parse_args([str(log), "--out", str(out), "--no-progress", "--processes", "1"]))
    with out.open(newline="") as file:
        (line,) = [line for line in csv.DictReader(file) if int(line["row"]) == row and line["kind"] == kind]
    return np.array([[float(line[f"{scope}_{stage}"]) for stage in STAGES[1:]] for scope in SCOPES])


def table(told: dict) -> Array:
    return np.array([[told[scope][stage] for stage in STAGES[1:]] for scope in SCOPES])


@pytest.mark.parametrize(("row", "ended"), [(13, False), (41, True)])
def test_an_effect_is_the_score_of_the_log_minus_that_of_the_log_without_the_event(
    tmp_path: Path, log: Path, row: int, ended: bool
) -> None:
    options = ("--user", f"u{row // 14}", "--row", str(row), "--latest", "3")
    told = explain(log, tmp_path / "out", *options, "--session-end" if ended else "--no-session-end")
    whole = write(tmp_path, log.read_text(), "whole.csv")
    kind = "session_end" if ended else "event"
    p = scored(whole, row, kind)
    np.testing.assert_allclose(table(told["probabilities"]), p, atol=2e-6)
    assert [event["row"] for event in told["events"]] == [row - 3, row - 2, row - 1]
    for event in told["events"]:
        kept = [line for number, line in enumerate(log.read_text().splitlines()) if number != event["row"]]
        shorter = write(tmp_path, "\n".join(kept) + "\n", f"without{event['row']}.csv")
        np.testing.assert_allclose(table(event["effect"]), p - scored(shorter, row - 1, kind), atol=4e-6)


def test_by_default_the_last_event_or_the_session_end_after_it_is_explained(tmp_path: Path, log: Path) -> None:
    told = explain(log, tmp_path, "--user", "u0")
    assert told["asked"]["row"] == 13
    assert told["asked"]["kind"] in ("event", "session_end")
    assert len(told["events"]) == 13
    weight = np.array(told["attention"]["weight"])
    assert weight.shape[-1] == told["attention"]["rows_seen"] == len(told["attention"]["rows"])
    np.testing.assert_allclose(weight.sum(-1), 1, atol=0.02)


@pytest.mark.parametrize("rounds", [1, 2])
def test_attention_weights_give_back_what_the_network_saw(rounds: int) -> None:
    config = ReformerConfig(dim=16, depth=2, heads=2, hash_buckets=4, window=4, rounds=rounds)
    model = ClickModel(config).eval()
    seen = []
    for attention in model.attentions():
        attention.lsh_attn.register_forward_hook(lambda module, given, out: seen.append((module, *given[:2], out[0])))
    ids, length = torch.randint(2, 19, (1, 21)), torch.tensor([21])
    with torch.no_grad():
        model(Rows(ids, ids, ids, torch.randint(0, 40, (1, 21, 60)).to(torch.uint8), length))
    assert len(seen) == 2
    for module, qk, value, out in seen:
        weight, hash_bucket, sizes = last_row(module, qk)
        np.testing.assert_allclose(np.einsum("hl,hld->hd", weight, value.numpy()), out[:, -1].numpy(), atol=1e-5)
        assert (sizes.sum(-1) == 21).all()
        assert hash_bucket.shape == (2, rounds)


def test_a_checkpoint_and_the_bundle_made_of_it_give_one_explanation(tmp_path: Path, log: Path) -> None:
    graph = explain(log, tmp_path / "a", "--user", "u3")
    torch_model = explain(log, tmp_path / "b", "--user", "u3", "--checkpoint", str(SHIPPED / "checkpoint"))
    np.testing.assert_allclose(table(graph["probabilities"]), table(torch_model["probabilities"]), atol=1e-5)
    for one, other in zip(graph["events"], torch_model["events"], strict=True):
        np.testing.assert_allclose(table(one["effect"]), table(other["effect"]), atol=2e-5)


def test_a_user_without_a_past_is_explained_by_nothing(tmp_path: Path) -> None:
    log = write(tmp_path, "user_id,event,timestamp\na,click,1511600000000\nb,order,1511700000000\n")
    assert explain(log, tmp_path / "out", "--user", "a")["events"] == []


class OnlyOrders:
    """Goes by the number of orders alone."""

    name = "only orders"
    contract = Contract(funnel=load_funnel(), window=1, base_rates=[[0.5] * 6] * 2)
    calibration = Calibration([[1.0] * 6] * 2, [[0.0] * 6] * 2)

    def run(self, feed: dict[str, Array]) -> Array:
        orders = feed["features"][..., FEATURES.index("total_order")].astype(np.float32)
        return np.tile((orders - 1)[..., None, None], (1, 1, 2, 6))


def test_only_what_the_model_goes_by_is_important(log: Path) -> None:
    columns, answerer = read_columns(read_log(log)), OnlyOrders()
    rules = Rules(1_800_000, 60_000, load_funnel().rules())
    histories = replay(columns, rules, False)
    settings = Settings(12, 20, 0, False)
    sample = sample_of(histories, reach_labels(histories, answerer.contract.horizon_ms), settings)
    features = importance_of_features(sample, asked(sample, answerer), settings)
    assert features["total_order"]["mean"]["log_loss_rise"] != 0
    others = [cell for name, cell in features.items() if name != "total_order"]
    assert len(others) > 20
    assert all(cell["mean"]["log_loss_rise"] == cell["mean"]["auc_drop"] == 0 for cell in others)
    types = importance_of_types(columns, sample, answerer, rules, histories.recorded, settings)
    assert {name for name, cell in types.items() if cell["mean"]["size"] > 0} == {"order"}
    low, high = types["order"]["category"]["intent"]["change_interval"]
    assert 0 < low <= types["order"]["category"]["intent"]["change"] <= high


def test_the_population_is_the_same_under_the_same_seed(tmp_path: Path, log: Path) -> None:
    options = ("--population", "4", "--resamples", "20", "--seed", "3")
    told = explain(log, tmp_path / "a", *options)
    assert told == explain(log, tmp_path / "b", *options)
    assert told["users"] == 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "neither --user nor --population"),
        (("--user", "nobody"), "has no user 'nobody', expected one such as u0"),
        (("--user", "u1", "--row", "0"), "line 0 of the log is no event of user 'u1'"),
        (("--user", "u1", "--user", "u2", "--row", "0"), "found --row with 2 users"),
        (("--user", "u1", "--bundle", "a", "--checkpoint", "b"), "found both --bundle and --checkpoint"),
    ],
)
def test_what_cannot_be_explained_is_told(tmp_path: Path, log: Path, options: tuple[str, ...], said: str) -> None:
    with pytest.raises(FunnelcastError, match=said):
        explain(log, tmp_path, *options)
