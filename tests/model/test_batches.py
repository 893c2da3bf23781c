"""Laws of training batches: every row is scored once, from what serving would see, and never from a censored label."""

import numpy as np

from model.batches import NOTHING_NEXT, batches, collate, segments
from model.contract.features import WIDTH
from model.contract.rows import base
from model.examples import CENSORED, Examples


def examples(*lengths: int) -> Examples:
    total = sum(lengths)
    draw = np.random.default_rng(0)
    reach = np.repeat(draw.integers(-1, 2, (total, 1, 1)), 12, 1).reshape(total, 2, 6).astype(np.int8)
    return Examples(
        users=tuple(f"u{index}" for index in range(len(lengths))),
        start=np.concatenate([[0], np.cumsum(lengths)]),
        ts=np.arange(total),
        type=draw.integers(2, 20, total).astype(np.uint8),
        item=np.arange(total),
        category=np.arange(total),
        features=draw.integers(0, 256, (total, WIDTH)).astype(np.uint8),
        reach=reach,
    )


def test_every_row_is_scored_once_from_the_rows_that_serving_sees() -> None:
    seen: dict[tuple[int, int], int] = {}
    for user, begin, scored, end in segments(examples(3, 1024, 2600), [0, 1, 2]):
        for row in range(scored, end):
            assert (user, row) not in seen
            assert begin == base(row)
            seen[user, row] = begin
    assert len(seen) == 3 + 1024 + 2600


def test_a_batch_holds_rows_labels_and_next_types_of_its_segments() -> None:
    data = examples(5, 9)
    batch = collate(data, segments(data, [1, 0]))
    assert batch.rows.lengths.tolist() == [9, 5]
    assert batch.rows.item[0].tolist() == list(range(5, 14))
    assert batch.rows.item[1].tolist() == [0, 1, 2, 3, 4, 0, 0, 0, 0]
    assert (batch.reach[1, 5:] == CENSORED).all()
    assert np.array_equal(batch.reach[0].numpy(), data.reach[5:])
    assert batch.next_type[0].tolist() == [*data.type[6:].tolist(), NOTHING_NEXT]
    assert batch.next_type[1].tolist() == [*data.type[1:5].tolist(), *[NOTHING_NEXT] * 5]
    assert batch.weight.tolist() == [[np.float32(1 / 3)], [np.float32(5**-0.5)]]


def test_rows_that_are_only_looked_back_at_carry_no_label() -> None:
    data = examples(1500)
    late = segments(data, [0])[1]
    batch = collate(data, [late])
    assert (batch.reach[0, : late.scored - late.begin] == CENSORED).all()
    assert np.array_equal(batch.reach[0, late.scored - late.begin :].numpy(), data.reach[1024:])
    assert (batch.next_type[0, : late.scored - late.begin] == NOTHING_NEXT).all()


def test_batches_keep_every_segment_and_stay_within_the_padded_rows() -> None:
    data = examples(*range(1, 60))
    cut = segments(data, list(range(59)))
    for draw in (None, np.random.default_rng(1)):
        grouped = batches(cut, 200, draw)
        assert sorted(part for group in grouped for part in group) == cut
        assert all(max(part.end for part in group) * len(group) <= 200 for group in grouped)


def test_of_rows_before_a_moment_no_next_event_is_asked() -> None:
    data = examples(5, 9)
    batch = collate(data, segments(data, [0]), since_ms=3)
    assert batch.next_type[0].tolist() == [NOTHING_NEXT] * 3 + [int(data.type[4]), NOTHING_NEXT]
