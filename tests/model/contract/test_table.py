"""The table's bytes: what goes in comes out, nothing else goes in, and foreign or damaged bytes are refused."""

import numpy as np
import pytest

from model.contract.errors import TableError
from model.contract.events import ClickEvent
from model.contract.sequence import RING, is_open, sequence_of
from tests.model.contract.logs import disorder, synthetic
from tests.model.contract.runs import Run, run

LONG = synthetic(3000, 2, 4)
NOON = 1_700_000_000_000


def test_rows_read_from_the_table_are_those_in_memory() -> None:
    worker = run(disorder(LONG))
    for key in (b"user 0", b"user 1"):
        read = sequence_of(key, worker.table.get)
        assert read is not None
        assert len(read.row) > 500
        for column, other in zip(read, worker.sequences.rows(key), strict=True):
            assert np.array_equal(column, other)


def test_a_user_the_table_lacks_has_no_sequence() -> None:
    assert sequence_of(b"nobody", {}.get) is None


def test_a_reloaded_user_packs_to_the_same_bytes() -> None:
    worker, log = run(disorder(LONG)), LONG[-1].timestamp
    again = Run()
    again.table = dict(worker.table)
    for w in (worker, again):
        for key in w.sequences.unknown([b"user 0", b"user 1"]):
            w.sequences.load(key, w.table.get)
        w.fold([ClickEvent(f"user {n}", "order", log + 1, "i", "c", 1.0, "last") for n in (0, 1)])
        w.commit()
    assert again.table == worker.table


def test_only_what_changed_is_packed() -> None:
    worker = Run()
    worker.fold([ClickEvent(user, "click", NOON) for user in "ab"])
    worker.commit()
    assert worker.sequences.pack() == [{}]
    worker.fold([ClickEvent("b", "click", NOON)])
    assert worker.sequences.changed.tolist() == [1]
    assert list(worker.sequences.pack()[0]) == [b"sb"]


def test_a_new_event_does_not_rewrite_a_long_history() -> None:
    worker = run(LONG)
    worker.fold([ClickEvent("user 0", "click", LONG[-1].timestamp + 1)])
    values = worker.sequences.pack()[0].values()
    assert len(values) <= 3
    assert sum(map(len, values)) < 1500
    assert sum(len(value) for key, value in worker.table.items() if key[2:] == b"user 0") > 20_000


def test_the_table_keeps_no_more_than_a_ring_of_rows_per_user() -> None:
    pages = [key for key in run(LONG).table if key[:1] == b"p" and key[2:] == b"user 0"]
    assert len(pages) == RING // 8 - 1


def test_the_head_value_ends_with_the_name_of_the_latest_category() -> None:
    worker = Run()
    worker.fold(
        [ClickEvent("u", "click", NOON, category="tents"), ClickEvent("u", "click", NOON + 1, category="Zelte ü")]
    )
    worker.commit()
    assert worker.table[b"su"].endswith("Zelte ü".encode())
    worker.restart()
    assert list(worker.sequences.names.values()) == ["Zelte ü".encode()]


def test_the_table_tells_which_sessions_are_open() -> None:
    worker = Run()
    worker.fold([ClickEvent("u", "click", NOON)])
    worker.commit()
    assert is_open(worker.table[b"su"])
    worker.close_due(NOON + 1_860_000)
    worker.commit()
    assert not is_open(worker.table[b"su"])


def test_the_stream_time_survives_a_restart() -> None:
    worker = run([ClickEvent("u", "click", NOON)])
    worker.restart()
    assert worker.sequences.streams[0] == NOON


@pytest.mark.parametrize("key", [b"t", b"suser 0", b"p\x05user 0"])
def test_a_value_of_another_version_is_refused_naming_both(key: bytes) -> None:
    table = run(LONG).table
    table[key] = b"\2" + table[key][1:]
    worker = Run()
    worker.table = table
    with pytest.raises(TableError, match="has version 2, but this program reads version 1"):
        worker.restart()


@pytest.mark.parametrize("key", [b"suser 0", b"p\x05user 0"])
def test_a_value_cut_short_is_refused(key: bytes) -> None:
    table = run(LONG).table
    whole = table[key]
    for length in range(1, len(whole) - 30, 7):
        table[key] = whole[:length]
        with pytest.raises(TableError, match="wrong length"):
            sequence_of(b"user 0", table.get)


def test_a_missing_page_is_refused_naming_its_key() -> None:
    table = run(LONG).table
    del table[b"p\x05user 0"]
    with pytest.raises(TableError, match=r"no b'p.x05user 0'"):
        sequence_of(b"user 0", table.get)
