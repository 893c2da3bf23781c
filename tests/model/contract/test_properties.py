"""Whatever happens to a small partition, the compiled reducer does what its specification says."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from model.contract.events import ClickEvent
from model.contract.sequence import REVISED, Block, Sequences, default_rules
from model.contract.stages import load_funnel
from tests.model.contract.oracle import Oracle
from tests.model.contract.runs import Run, by_user

FUNNEL = load_funnel()
RULES = default_rules()._replace(gap_ms=40_000, late_ms=15_000)
TYPES = ("product_view", "search", "cart_add", "cart_remove", "order", "click", "wishlist_add")

CLICK = st.builds(
    ClickEvent,
    user_id=st.sampled_from("ab"),
    event=st.sampled_from(TYPES),
    timestamp=st.integers(0, 60).map(lambda step: 1_700_006_300_000 + step * 5000),  # around a midnight
    item_id=st.sampled_from([None, "1", "2"]),
    category=st.sampled_from([None, "x", "y"]),
    price=st.sampled_from([None, 0.0, 12.5]),
    message_id=st.sampled_from([None, "m1", "m2", "m3"]),
)
CHUNK = st.lists(CLICK, max_size=12)
TIMER = st.integers(0, 400_000).map(lambda ms: 1_700_006_300_000 + ms)
STEPS = st.lists(
    st.one_of(CHUNK, CHUNK.map(lambda c: sorted(c, key=lambda e: e.timestamp)), TIMER, st.none()), max_size=12
)


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_any_mix_of_chunks_timers_and_restarts_gives_what_the_oracle_gives(
    steps: list[list[ClickEvent] | int | None],
) -> None:
    worker, oracle = Run(RULES), Oracle(FUNNEL, RULES.gap_ms, RULES.late_ms)
    expected: list[tuple] = []
    verdicts: list[int] = []
    for step in steps:
        if step is None:
            worker.restart()
        elif isinstance(step, int):
            worker.close_due(step)
            expected += oracle.close_due(step)
        else:
            worker.fold(step)
            rows, said = oracle.fold(step)
            expected += [(*r[:2], r[2] + len(verdicts) if r[2] >= 0 else -1, *r[3:]) for r in rows]
            verdicts += said
    worker.commit()
    assert worker.verdicts == verdicts
    assert worker.rows == [(*row[:-2], None, None) if row[3] == REVISED else row for row in expected]
    assert worker.table == oracle.table()


@settings(max_examples=100, deadline=None)
@given(st.lists(CLICK, max_size=60), st.lists(st.integers(0, 60), max_size=10))
def test_any_cut_of_a_log_gives_the_same_answers_and_bytes(log: list[ClickEvent], cuts: list[int]) -> None:
    whole, pieces = Run(RULES), Run(RULES)
    whole.fold(log)
    edges = [0, *sorted(cuts), len(log)]
    for low, high in pairwise(edges):
        pieces.fold(log[low:high])
        pieces.close_due(pieces.sequences.streams[0])
        pieces.restart()
    for worker in (whole, pieces):
        worker.close_due(worker.sequences.streams[0])
        worker.commit()
    assert by_user(pieces.rows) == by_user(whole.rows)
    assert (pieces.verdicts, pieces.table) == (whole.verdicts, whole.table)


@settings(max_examples=100, deadline=None)
@given(st.lists(CLICK, max_size=60))
def test_rows_are_in_time_order_and_sessions_end_where_the_gap_was(log: list[ClickEvent]) -> None:
    worker = Run(RULES)
    worker.fold(log)
    for user in {event.user_id.encode() for event in log}:
        rows = worker.sequences.rows(user)
        ts, ends = rows.ts.tolist(), (rows.type == 19).tolist()
        assert ts == sorted(ts)
        for k in range(1, len(ts)):
            if ends[k]:
                assert not ends[k - 1]
                assert ts[k] == ts[k - 1] + RULES.gap_ms
            elif not ends[k - 1]:
                assert ts[k] - ts[k - 1] <= RULES.gap_ms


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(CHUNK, CHUNK, TIMER | st.none()), max_size=8))
def test_partitions_that_are_folded_together_leave_what_each_leaves_alone(
    steps: list[tuple[list[ClickEvent], list[ClickEvent], int | None]],
) -> None:
    both, alone = Sequences(RULES, 1, 1, partitions=2), (Run(RULES), Run(RULES))
    found: list[list[tuple]] = [[], []]
    tables: list[dict[bytes, bytes]] = [{}, {}]

    def collect(blocks: Iterator[Block]) -> None:
        for block in blocks:
            places = both.partitions_of(block.slot).tolist()
            assert places == sorted(places)
            for place, slot, *rest in zip(places, *(column.tolist() for column in block), strict=True):
                found[place].append((both.key_of(slot), rest[0], *rest[2:]))  # without the index of the event

    for *chunks, timer in steps:
        slots = [
            both.slots_of([event.user_id.encode() for event in chunk], place) for place, chunk in enumerate(chunks)
        ]
        collect(both.fold(both.columns_of([*chunks[0], *chunks[1]], np.concatenate(slots))))
        for chunk, worker in zip(chunks, alone, strict=True):
            worker.fold(chunk)
        if timer is not None:
            collect(both.close_due(timer))
            for worker in alone:
                worker.close_due(timer)
        for place, packed in enumerate(both.pack()):
            tables[place] |= packed
            alone[place].commit()
    assert found == [[(row[0], row[1], *row[3:9]) for row in worker.rows] for worker in alone]
    assert tables == [worker.table for worker in alone]
