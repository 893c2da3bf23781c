"""Laws of the click model: strict causality, no influence of padding or batch mates, checkpoints that come back."""

from pathlib import Path

import msgspec
import pytest
import torch
import torch.nn.functional as F

from model.contract.errors import FunnelcastError
from model.reformer import (
    CONFIG,
    LEAST_SPREAD,
    TIERS,
    WEIGHTS,
    ClickModel,
    ReformerConfig,
    Rows,
    load_checkpoint,
    save_weights,
    weights,
)

torch.set_num_threads(1)  # small tensors: threads would only wait for each other

TINY = ReformerConfig(dim=16, depth=2, heads=2, hash_buckets=4, window=4, item_hashes=32, category_hashes=16)


def lively(config: ReformerConfig = TINY) -> ClickModel:
    """A model with random weights whose attention matters."""
    torch.manual_seed(7)
    model = ClickModel(config).eval()
    for layer in model.attentions():
        layer.toqk.weight.data *= 4
        layer.to_out.weight.data *= 3
    return model


def random_rows(users: int, length: int, seed: int = 0) -> Rows:
    draw = torch.Generator().manual_seed(seed)

    def ids(high: int, *width: int) -> torch.Tensor:
        return torch.randint(1, high, (users, length, *width), generator=draw)

    lengths = torch.full((users,), length)
    return Rows(ids(20), ids(32), ids(16), ids(200, TINY.features).to(torch.uint8), lengths)


def cut(rows: Rows, users: slice, length: int) -> Rows:
    parts = [part[users, :length] for part in rows[:4]]
    return Rows(*parts, rows.lengths[users].clamp(max=length))


@torch.no_grad()
def test_no_score_depends_on_a_later_row() -> None:
    model, rows = lively(), random_rows(2, 50)
    whole = model(rows)
    for length in (1, 5, 16, 33):
        prefix = model(cut(rows, slice(None), length))
        for found, expected in zip(prefix, whole, strict=True):
            torch.testing.assert_close(found, expected[:, :length], atol=2e-6, rtol=0)


@torch.no_grad()
def test_an_early_row_moves_a_late_score() -> None:
    model, rows = lively(), random_rows(1, 50)
    changed = rows._replace(features=rows.features.clone())
    changed.features[0, 3] = 0
    assert (model(rows).reach - model(changed).reach)[0, 4:].abs().max() > 1e-3


@torch.no_grad()
def test_no_score_depends_on_padding_or_batch_mates() -> None:
    model, rows = lively(), random_rows(3, 64)
    rows = rows._replace(lengths=torch.tensor([9, 64, 30]))
    together = model(rows)
    for user, length in enumerate(rows.lengths.tolist()):
        alone = model(cut(rows, slice(user, user + 1), length))
        torch.testing.assert_close(alone.reach[0], together.reach[user, :length], atol=2e-6, rtol=0)


@torch.no_grad()
def test_features_are_taken_as_centred_and_of_unit_spread_once_their_bytes_are_known() -> None:
    model, rows = lively(), random_rows(1, 500)
    rows.features[..., 7] = 9  # never varies, and must not be blown up
    rates = torch.stack([torch.bincount(column, minlength=256) / 500 for column in rows.features[0].long().T])
    model.begin(rates, torch.full((2, 6), 0.25))
    seen = model.embed.views[rows.features[0].long()].flatten(1)  # (L, F * 4)
    standard = (seen - seen.mean(0)) / seen.std(0, correction=0).clamp(min=LEAST_SPREAD)
    wide = model.embed.wide
    torch.testing.assert_close(model.embed(rows)[1][0], F.linear(standard, wide.weight, wide.bias), atol=1e-4, rtol=0)
    torch.testing.assert_close(model.reach.bias.sigmoid(), torch.full((12,), 0.25))


def test_ramps_rise_one_after_the_other_over_bytes_that_come_equally_often() -> None:
    embed = ClickModel(msgspec.structs.replace(TINY, ramps=5)).embed
    rates = torch.zeros(TINY.features, 256)
    rates[:, 0], rates[:, 10:90] = 0.2, 0.01
    rates[1:], rates[1:, 4] = 0.0, 1.0  # a single byte
    embed.standardise(rates)
    assert embed.knots[0].tolist() == [0, 1, 29, 49, 69, 89]
    assert embed.knots[1].tolist() == [0, 1, 4, 4, 4, 4]
    seen = embed.ramps(torch.tensor([0.0, 1.0, 15.0, 49.0, 59.0, 89.0, 255.0])[:, None].expand(-1, TINY.features))
    assert seen[:, 0].sum(-1).tolist() == [0, 1, 1.5, 3, 3.5, 5, 5]
    assert seen[:, 1].sum(-1).tolist()[:2] == [0, 1]


@pytest.mark.parametrize("tier", sorted(TIERS))
def test_every_tier_gives_a_logit_per_scope_and_stage_at_every_row(tier: str) -> None:
    with torch.no_grad():
        logits = ClickModel(TIERS[tier]).eval()(cut(random_rows(2, 20), slice(None), 20))
    assert logits.reach.shape == (2, 20, 2, 6)
    assert logits.next_type.shape == (2, 20, 20)


def test_reversible_blocks_train_with_the_same_gradients() -> None:
    gradients = []
    for reversible in (False, True):
        config = msgspec.structs.replace(TINY, reversible=reversible, dropout=0.0, anonymity=0.0)
        model = lively(config).train()
        model(random_rows(2, 30)).reach.square().sum().backward()
        gradients.append({name: part.grad for name, part in model.named_parameters()})
    for name, plain in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], plain, atol=1e-3, rtol=1e-3)


def test_a_checkpoint_gives_back_the_scores(tmp_path: Path) -> None:
    model = lively()
    save_weights(model, tmp_path / WEIGHTS)
    (tmp_path / CONFIG).write_bytes(msgspec.json.encode({"model": TINY}))
    again = load_checkpoint(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(random_rows(2, 20)).reach, model(random_rows(2, 20)).reach)
    assert not any("irrev" in name for name in weights(model))


@pytest.mark.parametrize(
    ("config", "tensors", "expected"),
    [
        (None, {}, "no checkpoint in"),
        (b"{", {}, "is not a checkpoint's config"),
        (msgspec.json.encode({"model": TINY}), None, "does not hold the weights"),
        (msgspec.json.encode({"model": TINY}), {"norm.weight": torch.ones(16)}, "lacks"),
        (msgspec.json.encode({"model": TINY}), {"norm.weight": torch.ones(8)}, "does not hold the weights"),
    ],
)
def test_what_is_no_checkpoint_is_refused_in_one_sentence(
    tmp_path: Path, config: bytes | None, tensors: dict[str, torch.Tensor] | None, expected: str
) -> None:
    if config is not None:
        (tmp_path / CONFIG).write_bytes(config)
    if tensors is not None:
        torch.save(tensors, tmp_path / WEIGHTS)
    with pytest.raises(FunnelcastError, match=expected):
        load_checkpoint(tmp_path)
