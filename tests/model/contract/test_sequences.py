"""The users in memory: slots, columns from click events, network inputs, and eviction."""

import numpy as np
import pytest

from model.contract.errors import FunnelcastError
from model.contract.events import CLASS_OF, TYPE_CODE, ClickEvent
from model.contract.sequence import LMAX, NAMES_KEPT, NEW, REVISED, RING, Block, Sequences, base, default_rules, warm
from model.contract.vocabulary import hash64, name_hash
from tests.model.contract.logs import disorder, synthetic
from tests.model.contract.runs import Run, by_user, run

NOON = 1_700_000_000_000


def test_a_lateness_bound_above_the_session_gap_is_refused() -> None:
    with pytest.raises(FunnelcastError, match="lateness bound is 70000 ms"):
        Sequences(default_rules()._replace(gap_ms=60_000, late_ms=70_000))


def test_users_keep_their_slots_while_others_come() -> None:
    sequences = Sequences(default_rules(), users=1, pages=1)
    users = [b"%d" % n for n in range(100)]
    first = sequences.slots_of(users[:3]).tolist()
    assert sequences.unknown([*users, *users]) == users[3:]
    assert sequences.slots_of([*users, users[0]]).tolist() == [*range(100), first[0]]
    assert (len(sequences), sequences.unknown([users[7], b"x"])) == (100, [b"x"])
    assert sequences.key_of(7) == b"7"


def test_columns_hold_codes_hashes_and_ids_and_learn_category_names() -> None:
    sequences = Sequences(default_rules())
    events = [
        ClickEvent("u", "order", NOON, "tent", "Zelte ü", 99.0, "m1"),
        ClickEvent("v", "click", NOON + 1),
        ClickEvent("u", "search", NOON + 2, "", "", 0.0, ""),
    ]
    columns = sequences.columns(events, [b"u", b"v", b"u"])
    assert columns.slot.tolist() == [0, 1, 0]
    assert columns.ts.tolist() == [NOON, NOON + 1, NOON + 2]
    assert columns.type.tolist() == [TYPE_CODE["order"], TYPE_CODE["click"], TYPE_CODE["search"]]
    assert columns.item.tolist() == [name_hash("tent"), 0, 1]
    assert columns.category.tolist() == [name_hash("Zelte ü"), 0, 1]
    assert columns.price.tolist() == [107, 0, 1]
    assert columns.id.tolist() == [hash64("m1"), 0, hash64("")]
    assert sequences.names == {name_hash("Zelte ü"): "Zelte ü".encode(), 1: b""}


def test_an_empty_chunk_changes_nothing() -> None:
    sequences = Sequences(default_rules())
    assert list(sequences.fold(sequences.columns([], []))) == []
    assert sequences.pack() == [{}]


def test_the_base_moves_by_half_a_ring_once_the_ring_is_full() -> None:
    assert [base(n) for n in (0, RING - 1, RING, RING + LMAX - 1, RING + LMAX)] == [0, 0, LMAX, LMAX, RING]


def test_inputs_begin_at_the_base_of_the_users_last_row() -> None:
    worker = Run()
    log = [ClickEvent("u", "click", NOON + n * 1000) for n in range(RING + LMAX + 3)]
    lengths: dict[int, int] = {}
    for low in range(0, len(log), 100):
        sequences, events = worker.sequences, log[low : low + 100]
        for block in sequences.fold(sequences.columns(events, [b"u"] * len(events))):
            inputs = sequences.inputs(block)
            assert inputs.lengths.tolist() == [block.row[-1] + 1 - base(int(block.row[-1]))]
            lengths.update(zip(block.row.tolist(), inputs.position.tolist(), strict=True))
    assert all(position == row - base(row) for row, position in lengths.items())
    assert max(lengths.values()) == RING - 1


def test_only_the_rows_that_are_asked_for_are_gathered() -> None:
    sequences = Sequences(default_rules())
    events = [ClickEvent(user, "click", NOON + n * 1000, f"i{n}") for n in range(20) for user in ("u", "v")]
    block = next(sequences.fold(sequences.columns(events, [event.user_id.encode() for event in events])))
    wanted, everything = sequences.wanted(block), sequences.inputs(block)
    newest = sequences.gather(wanted._replace(begin=wanted.end - (1, 3)))
    assert newest.lengths.tolist() == [1, 3]
    assert newest.item.tolist() == [*everything.item[19:20], *everything.item[37:40]]
    assert newest.features.tolist() == everything.features[[19, 37, 38, 39]].tolist()
    assert newest.position[-2:].tolist() == [0, 2]


def test_a_block_ends_before_a_late_row_would_change_one_of_its_answers() -> None:
    sequences = Sequences(default_rules())
    events = [ClickEvent("u", "click", NOON + ms) for ms in (0, 2000, 1000, 3000)]
    blocks = list(sequences.fold(sequences.columns(events, [b"u"] * 4)))
    assert [block.kind.tolist() for block in blocks] == [[NEW, NEW], [NEW, REVISED, NEW]]
    assert [block.source.tolist() for block in blocks] == [[0, 1], [2, -1, 3]]


def test_blocks_stay_as_they_were_when_the_next_one_is_made() -> None:
    log = disorder(synthetic(2000, 3, 5))
    sequences = Sequences(default_rules())
    kept: list[Block] = []
    copies: list[Block] = []
    for block in sequences.fold(sequences.columns(log, [event.user_id.encode() for event in log])):
        kept.append(block)
        copies.append(Block(*(column.copy() for column in block)))
    assert len(kept) > 5
    for block, copy in zip(kept, copies, strict=True):
        assert all(np.array_equal(column, other) for column, other in zip(block, copy, strict=True))


def test_users_dropped_and_loaded_again_go_on_as_if_they_had_stayed() -> None:
    def forget(worker: Run) -> None:
        worker.close_due(worker.sequences.streams[0])
        worker.commit()
        worker.sequences.drop_closed(keep=4)

    log = synthetic(3000, 40, 60)
    stayed, dropped = run(log, 100), run(log, 100, between=forget)
    assert len(dropped.sequences) < 30 < len(stayed.sequences)
    for worker in (stayed, dropped):
        worker.close_due(worker.sequences.streams[0])
        worker.commit()
    assert dropped.table == stayed.table
    assert by_user(dropped.rows) == by_user(stayed.rows)


def test_users_with_an_open_session_are_never_dropped() -> None:
    worker = Run()
    worker.fold([ClickEvent("open", "click", NOON + 1_000_000), ClickEvent("closed", "click", NOON)])
    worker.close_due(NOON + 1_860_000)
    worker.commit()
    worker.sequences.drop_closed(keep=0)
    assert worker.sequences.unknown([b"open", b"closed"]) == [b"closed"]


def test_the_longest_silent_user_is_dropped_first() -> None:
    worker = Run()
    worker.fold([ClickEvent(user, "click", NOON + n) for n, user in enumerate("bcad")])
    worker.close_due(NOON * 2)
    worker.commit()
    slots = worker.sequences.slots_of([b"b", b"c"])
    assert worker.sequences.drop_closed(keep=2).tolist() == slots.tolist()
    assert worker.sequences.unknown([b"b", b"c", b"a", b"d"]) == [b"b", b"c"]


def test_pages_of_dropped_users_are_used_again() -> None:
    sequences = Sequences(default_rules(), users=1, pages=4)
    for n in range(200):
        log = [ClickEvent("u", "click", NOON + n * 86_400_000 + k) for k in range(20)]
        for _ in sequences.fold(sequences.columns(log, [b"%d" % n] * 20)):
            pass
        for _ in sequences.close_due(NOON * 2):
            pass
        sequences.pack()
        sequences.drop_closed(keep=0)
    assert len(sequences._arena.pages) == 4
    assert len(sequences._arena.heads) == 1


def test_category_names_nobody_needs_are_forgotten_when_there_are_too_many() -> None:
    worker = Run()
    log = [ClickEvent("u", "click", NOON + n, category=f"category {n}") for n in range(NAMES_KEPT + 2)]
    worker.sequences.columns(log[:-1], [b"u"] * (len(log) - 1))
    worker.fold(log[-1:])
    worker.commit()
    worker.sequences.drop_closed(keep=1)
    assert list(worker.sequences.names.values()) == [f"category {NAMES_KEPT + 1}".encode()]
    worker.sequences.columns(log[:1], [b"u"])
    assert worker.sequences.names[name_hash("category 0")] == b"category 0"


def test_every_wire_type_has_a_feature_class() -> None:
    assert CLASS_OF.shape == (len(TYPE_CODE),)
    assert CLASS_OF.max() == 7


def test_warming_up_runs_everything_that_is_compiled() -> None:
    warm()
