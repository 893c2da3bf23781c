"""Laws of the contenders: each learns what there is to learn, looks at no later row, and answers in row order."""

import msgspec
import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits

from model.baselines import CONTENDERS, BaseRate, Network, contender
from model.contract.events import TYPE_CODE
from model.contract.features import WIDTH
from model.examples import CENSORED, Examples
from model.fit import Settings
from model.measures import auc
from model.reformer import ReformerConfig
from model.tabular import known_rows, logit

torch.set_num_threads(1)  # small tensors: threads would only wait for each other
threadpool_limits(1)

CONFIG = ReformerConfig(dim=16, depth=1, heads=2, dropout=0.0, item_hashes=64, category_hashes=32)
SETTINGS = Settings(CONFIG, learning_rate=1e-2, warm_up=5, batch_rows=200, average=0.8)
LEARNERS = [name for name in CONTENDERS if name != "base_rate"]


def shop(users: int, rows: int, seed: int = 0) -> Examples:
    """Return users whose rows are reached after a cart event mostly, and seldom else; a few rows are censored."""
    draw = np.random.default_rng(seed)
    total = users * rows
    cart = draw.random(total) < 0.4
    reached = draw.random(total) < np.where(cart, 0.8, 0.1)
    reach = np.repeat(reached[:, None], 12, 1).reshape(total, 2, 6).astype(np.int8)
    reach[draw.random(total) < 0.1] = CENSORED
    features = draw.integers(0, 9, (total, WIDTH)).astype(np.uint8)
    features[:, 49] = cart
    return Examples(
        users=tuple(f"u{index}" for index in range(users)),
        start=np.arange(0, total + 1, rows),
        ts=np.arange(total),
        type=np.where(cart, TYPE_CODE["cart_add"], TYPE_CODE["product_view"]).astype(np.uint8),
        item=draw.integers(2, 64, total),
        category=draw.integers(2, 32, total),
        features=features,
        reach=reach,
    )


@pytest.mark.parametrize("name", LEARNERS)
def test_every_contender_learns_what_is_plain_and_answers_in_row_order(name: str) -> None:
    data = shop(users=60, rows=30)
    model = contender(name, SETTINGS, epochs=4)
    model.fit(data, list(range(40)), list(range(40, 50)), progress=False)
    test = [55, 51, 50]
    logits, rows = model.logits(data, test), known_rows(data, test)
    assert logits.shape == (len(rows), 2, 6)
    assert np.isfinite(logits).all()
    assert auc(logits[:, 0, 4], data.reach[rows, 0, 4]) > 0.8


@pytest.mark.parametrize(("name", "taught"), [("reformer", True), ("lstm", False), ("taught_lstm", True)])
def test_ours_is_taught_and_a_rival_only_if_its_name_says_so(name: str, taught: bool) -> None:
    model = contender(name, msgspec.structs.replace(SETTINGS, taught=True), epochs=1)
    model.fit(shop(users=20, rows=20), list(range(14)), list(range(14, 20)), progress=False)
    assert isinstance(model, Network)
    assert ("reach, as its teachers say" in model.phases) == taught


@pytest.mark.parametrize("name", ["reformer", "lstm", "gru", "transformer"])
def test_no_network_looks_at_a_later_row(name: str) -> None:
    """The library's Reformer is left out: its hash rotations are new at every pass."""
    data = shop(users=4, rows=40)
    model = contender(name, SETTINGS, epochs=1)
    model.fit(data, [0, 1], [2], progress=False)
    changed = data._replace(features=data.features.copy(), type=data.type.copy())
    late = slice(3 * 40 + 25, 4 * 40)
    changed.features[late], changed.type[late] = 200, TYPE_CODE["order"]
    early = known_rows(data, [3]) < late.start
    same = model.logits(data, [3])[early], model.logits(changed, [3])[early]
    np.testing.assert_allclose(*same, atol=1e-5)
    assert not np.allclose(model.logits(data, [3])[~early], model.logits(changed, [3])[~early])


def test_the_base_rate_is_that_of_the_training_users() -> None:
    data = shop(users=10, rows=50)
    model = BaseRate()
    model.fit(data, [1, 2, 3], [], None)
    expected = data.reach[known_rows(data, [1, 2, 3])].mean(0)
    np.testing.assert_allclose(model.logits(data, [5])[0], logit(expected))


@pytest.mark.parametrize("name", ["boosting", "logistic"])
def test_a_stage_that_nobody_reaches_gets_a_constant(name: str) -> None:
    data = shop(users=30, rows=20)
    reach = data.reach.copy()
    reach[..., 5] = np.where(reach[..., 5] == CENSORED, CENSORED, 0)
    model = contender(name, SETTINGS, epochs=1)
    model.fit(data._replace(reach=reach), list(range(20)), list(range(20, 30)), None)
    assert len(np.unique(model.logits(data, [3])[..., 5])) == 1
