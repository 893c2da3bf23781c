"""The table as RocksDB has it: what waits to be written is read as if it were, and never outruns the changelog."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import faust
import pytest

from worker.sequences import SequenceTable
from worker.transport import TP


@pytest.fixture
def table(tmp_path: Path) -> SequenceTable:
    app = faust.App("table", broker="kafka://nowhere:1", store="rocksdb://", datadir=str(tmp_path))
    return SequenceTable(app, name="sequences", partitions=2)


def on_disk(table: SequenceTable, partition: int = 0) -> tuple[dict[bytes, bytes], int | None]:
    """Return the keys and values of a partition in RocksDB, and the changelog offset that they end at."""
    store = table.data
    offset = store.persisted_offset(TP("changelog", partition))
    held = dict(store._db_for_partition(partition).items())
    held.pop(store.offset_key, None)
    return held, offset


def test_what_waits_to_be_written_is_read(table: SequenceTable) -> None:
    table.write(0, {b"sa": b"1", b"sb": b"1"}, 7)
    table.flush(0)
    table.write(0, {b"sb": b"2", b"sc": b"2"}, 8)
    table.write(0, {b"sa": None}, 9)
    assert [table.read(0, key) for key in (b"sa", b"sb", b"sc", b"sd")] == [None, b"2", b"2", None]
    assert table.read(1, b"sb") is None
    assert on_disk(table) == ({b"sa": b"1", b"sb": b"1"}, 7)
    assert dict(table.scan(0, b"s")) == {b"sb": b"2", b"sc": b"2"}


def test_rocksdb_gets_the_updates_of_several_transactions_with_the_offset_of_the_last(table: SequenceTable) -> None:
    for number in range(4):
        table.write(0, {b"user": b"%d" % number, b"page %d" % number: b""}, 10 + number)
    table.write(0, {b"mark": b"m"}, None)  # nothing of it is in the changelog
    assert not table.flush(0, most=7)
    assert on_disk(table) == ({}, None)
    assert table.flush(0, most=6)
    pages = {b"page %d" % number: b"" for number in range(4)}
    assert on_disk(table) == ({b"user": b"3", b"mark": b"m", **pages}, 13)
    assert not table.flush(0)


def test_restored_updates_are_on_disk_at_once(table: SequenceTable) -> None:
    table.restore(0, [SimpleNamespace(key=b"a", value=b"1"), SimpleNamespace(key=b"a", value=None)], 4)
    assert on_disk(table) == ({}, 4)
    table.restore(0, [], 6)  # control records only
    assert on_disk(table) == ({}, 6)


def test_a_table_that_is_distrusted_keeps_no_offset_and_nothing_unwritten(table: SequenceTable) -> None:
    table.write(0, {b"a": b"1"}, 7)
    table.flush(0)
    table.write(0, {b"a": b"2"}, 8)
    table.forget_offset(0)
    assert not table.flush(0)
    assert on_disk(table) == ({b"a": b"1"}, None)
