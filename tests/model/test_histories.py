"""Laws of the replay: what training sees is what the worker's fold gives, whole, for every user and every row."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from model.contract.events import SESSION_END, TYPE_CODE, WIRE_TYPES
from model.contract.rows import GAP_MS, LATE_MS, RING, Array
from model.contract.sequence import REVISED, Block, Events, Sequences, default_rules
from model.datasets import LogColumns, event_time_order, read_columns, read_log
from model.histories import ROW_COLUMNS, SILENCE_MS, Histories, recorded_stretches, replay, replay_groups

ROOT = Path(__file__).parents[2]
EXCERPT = ROOT / "deploy" / "demo" / "clicks.csv.gz"
TAOBAO = ROOT.parent / "shared" / "data" / "taobao" / "UserBehavior.csv.gz"
HOUR_MS, DAY_MS = 3_600_000, 86_400_000
START = 1_511_582_400_000


def log_of(events: list[tuple[str, int, str, int]], ids: list[int] | None = None) -> LogColumns:
    """Make a log of (user, milliseconds after the start, event, category)."""
    users = list(dict.fromkeys(event[0] for event in events))
    return LogColumns(
        user=np.array([users.index(event[0]) for event in events], "i4"),
        ts=np.array([START + event[1] for event in events], "i8"),
        type=np.array([TYPE_CODE[event[2]] for event in events], "u1"),
        item=np.arange(1, len(events) + 1, dtype="u4"),
        category=np.array([event[3] for event in events], "u4"),
        price=np.full(len(events), 7, "u1"),
        id=np.array(ids or [0] * len(events), "u8"),
        row=np.arange(len(events)),
        users=users,
        categories={},
    )


def random_log(users: int, events: int, seed: int, span_ms: int) -> LogColumns:
    """Make a log of random events; some users own most of them."""
    random = np.random.default_rng(seed)
    owner = (random.random(events) ** 3 * users).astype(int)
    ts, category = random.integers(0, span_ms, events), random.integers(0, 5, events)
    kinds = random.choice(WIRE_TYPES, events)
    return log_of([(f"u{u}", int(t), str(k), int(c)) for u, t, k, c in zip(owner, ts, kinds, category, strict=True)])


@dataclass
class Row:
    """What the worker knows of one row when it answers it."""

    values: tuple[int, ...]
    features: bytes


def answered(columns: LogColumns, chunk: int) -> dict[str, list[Row]]:
    """Fold a log in event-time order as the worker does, chunk by chunk; return the rows as they were answered."""
    sequences, order = Sequences(default_rules()), event_time_order(columns)
    slots = sequences.slots_of([user.encode() for user in columns.users])
    rows: dict[str, list[Row]] = {user: [] for user in columns.users}

    def keep(blocks: Iterable[Block], at: Array) -> None:
        for block in blocks:
            inputs = sequences.inputs(block)
            starts = np.cumsum([0, *inputs.lengths])[inputs.owner] + inputs.position
            assert not (block.kind == REVISED).any()
            for i, j in enumerate(starts):
                source = -1 if block.source[i] < 0 else int(at[block.source[i]])
                values = (block.ts[i], block.type[i], block.stage[i], block.user_stage[i], block.category[i])
                row = Row((*map(int, values), int(inputs.item[j]), source), inputs.features[j].tobytes())
                mine = rows[sequences.key_of(block.slot[i]).decode()]
                assert block.row[i] == len(mine)
                mine.append(row)

    for begin in range(0, len(order), chunk):
        at = order[begin : begin + chunk]
        fields = (columns.ts, columns.type, columns.item, columns.category, columns.price, columns.id)
        keep(sequences.fold(Events(slots[columns.user[at]], *(field[at] for field in fields))), at)
    keep(sequences.close_due(sequences.streams[0]), order)
    return rows


def of_user(histories: Histories, user: int) -> list[Row]:
    """Return the rows of one user of the histories."""
    h, found = histories, []
    for k in range(h.offsets[user], h.offsets[user + 1]):
        values = (h.ts[k], h.type[k], h.stage[k], h.user_stage[k], h.category[k], h.item[k], h.source[k])
        found.append(Row(tuple(map(int, values)), h.features[k].tobytes()))
    return found


@pytest.mark.parametrize("chunk", [97, 5000])
def test_the_replay_gives_every_row_as_the_worker_answers_it(chunk: int) -> None:
    columns = random_log(users=9, events=6000, seed=1, span_ms=9 * DAY_MS)
    histories, expected = replay(columns), answered(columns, chunk)
    assert np.diff(histories.offsets).max() > 2 * RING  # one user's rows left the ring
    assert histories.users == columns.users
    for user, name in enumerate(histories.users):
        assert of_user(histories, user) == expected[name]


def test_the_replay_of_real_clicks_gives_every_row_as_the_worker_answers_it() -> None:
    columns = read_columns(read_log(TAOBAO if TAOBAO.exists() else EXCERPT))
    histories, expected = replay(columns), answered(columns, 4096)
    for user, name in enumerate(histories.users):
        assert of_user(histories, user) == expected[name]


def test_groups_of_users_change_nothing() -> None:
    columns = random_log(users=40, events=3000, seed=2, span_ms=3 * DAY_MS)
    whole, groups = replay(columns), list(replay_groups(columns, group_events=100))
    assert len(groups) > 5
    assert [user for group in groups for user in group.users] == whole.users
    for name in ROW_COLUMNS:
        assert np.array_equal(np.concatenate([getattr(group, name) for group in groups]), getattr(whole, name)), name


def test_the_order_of_the_source_does_not_matter_to_events_of_different_times() -> None:
    columns = random_log(users=5, events=500, seed=3, span_ms=DAY_MS)
    first = np.unique(columns.ts, return_index=True)[1]
    columns = columns._replace(**{name: getattr(columns, name)[first] for name in columns._fields[:8]})
    shuffled = np.random.default_rng(4).permutation(len(first))
    other = columns._replace(**{name: getattr(columns, name)[shuffled] for name in columns._fields[:8]})
    a, b = replay(columns), replay(other)
    for name in set(ROW_COLUMNS) - {"source"}:
        assert np.array_equal(getattr(a, name), getattr(b, name)), name
    ends = a.session_end
    assert np.array_equal(shuffled[b.source[~ends]], a.source[~ends])


def test_sources_point_to_the_events_and_session_ends_have_none() -> None:
    columns = random_log(users=4, events=800, seed=5, span_ms=2 * DAY_MS)
    histories = replay(columns)
    events = ~histories.session_end
    assert sorted(histories.source[events]) == list(range(800))
    assert set(histories.source[~events]) == {-1}
    for name in ("ts", "type", "item", "category"):
        assert np.array_equal(getattr(histories, name)[events], getattr(columns, name)[histories.source[events]]), name


def test_a_session_open_at_the_end_of_the_log_is_closed_only_if_it_was_due() -> None:
    due = GAP_MS + LATE_MS
    columns = log_of([("ann", 0, "order", 1), ("bob", 1, "order", 1), ("eve", due, "order", 1)])
    histories = replay(columns)
    ends = {
        user: histories.ts[histories.offsets[u] : histories.offsets[u + 1]][1:] - START
        for u, user in enumerate(histories.users)
    }
    assert {user: end.tolist() for user, end in ends.items()} == {"ann": [GAP_MS], "bob": [], "eve": []}


def test_a_message_that_comes_twice_is_one_row_and_counted() -> None:
    columns = log_of([("ann", 0, "order", 1), ("ann", 5, "order", 1), ("ann", 5, "order", 1)], ids=[4, 5, 4])
    histories = replay(columns)
    assert (histories.source.tolist(), histories.duplicates) == ([0, 1], 1)


def test_a_month_of_silence_of_the_whole_log_divides_it_into_recorded_stretches() -> None:
    columns = log_of([("ann", 0, "order", 1), ("bob", HOUR_MS, "click", 1), ("ann", 30 * DAY_MS, "order", 1)])
    histories = replay(columns)
    assert (histories.recorded - START).tolist() == [[0, HOUR_MS], [30 * DAY_MS, 30 * DAY_MS]]
    assert histories.type.tolist().count(SESSION_END) == 2


def test_the_recorded_stretches_do_not_depend_on_the_order_or_the_parts_of_the_times() -> None:
    draw = np.random.default_rng(8)
    starts = np.cumsum(draw.integers(DAY_MS, 15 * DAY_MS, 40))
    ts = draw.permutation(START + (starts[:, None] + draw.integers(0, DAY_MS, (40, 30))).ravel())
    gaps = np.flatnonzero(np.diff(np.sort(ts)) > SILENCE_MS)
    expected = np.stack([np.sort(ts)[np.append(0, gaps + 1)], np.sort(ts)[np.append(gaps, len(ts) - 1)]], axis=1)
    assert len(expected) > 5
    for parts in ([ts], np.split(ts, [1, 77, 600])):
        assert np.array_equal(recorded_stretches(parts), expected)


def test_the_progress_bar_counts_events_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    replay(random_log(users=3, events=200, seed=6, span_ms=DAY_MS), progress=True)
    assert "replay: 100%" in capsys.readouterr().err
    replay(random_log(users=3, events=200, seed=6, span_ms=DAY_MS))
    assert capsys.readouterr().err == ""
