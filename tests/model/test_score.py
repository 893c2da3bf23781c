"""Laws of offline scores: a wanted row is scored from the rows up to it, whatever else is in the block."""

import numpy as np
import pytest
import torch

from model.contract.bundle import Calibration, pad
from model.contract.events import ClickEvent
from model.contract.sequence import Block, Inputs, Sequences, default_rules
from model.contract.vocabulary import Vocabulary
from model.reformer import ClickModel, ReformerConfig, Rows
from model.score import score_offline

torch.set_num_threads(1)  # small tensors: threads would only wait for each other

CONFIG = ReformerConfig(dim=16, depth=2, heads=2, hash_buckets=4, window=8, item_hashes=64, category_hashes=16)
CALIBRATION = Calibration([[0.5] * 6, [2.0] * 6], [[0.1] * 6, [-1.0] * 6])


def clicks(users: int, each: int) -> list[ClickEvent]:
    draw = np.random.default_rng(0)
    kinds = ("product_view", "cart_add", "search", "order")
    events, at = [], 1_700_000_000_000
    for _ in range(users * each):
        at += int(draw.integers(1_000, 60_000))
        user, item, category = draw.integers(users), draw.integers(50), draw.integers(5)
        events.append(ClickEvent(f"user-{user}", kinds[draw.integers(4)], at, f"item-{item}", f"category-{category}"))
    return events


def blocks(events: list[ClickEvent]) -> list[tuple[Block, Inputs]]:
    sequences = Sequences(default_rules())
    columns = sequences.columns(events, [event.user_id.encode() for event in events])
    return [(block, sequences.inputs(block)) for block in sequences.fold(columns)]


@pytest.fixture(scope="module")
def model() -> ClickModel:
    torch.manual_seed(3)
    return ClickModel(CONFIG).eval()


def test_each_wanted_row_is_scored_from_the_rows_up_to_it(model: ClickModel) -> None:
    vocabulary = Vocabulary(item_hashes=CONFIG.item_hashes, category_hashes=CONFIG.category_hashes)
    answered = 0
    for _, inputs in blocks(clicks(users=21, each=15)):
        found = score_offline(model, CALIBRATION, inputs)
        assert found.shape == (len(inputs.owner), 2, 6)
        for row in range(0, len(inputs.owner), 7):
            user, length = int(inputs.owner[row]), int(inputs.position[row]) + 1
            arrays = pad(inputs, [user], int(inputs.lengths[user]), vocabulary)
            rows = Rows(
                *(torch.from_numpy(arrays[name][:, :length]) for name in Rows._fields[:4]), torch.tensor([length])
            )
            with torch.no_grad():
                expected = CALIBRATION.apply(model(rows).reach[0, -1].numpy())
            np.testing.assert_allclose(found[row], expected, atol=1e-6)
        answered += len(inputs.owner)
    assert answered >= 21 * 15
