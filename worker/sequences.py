"""The table of user sequences: committed bytes per (partition, key), restored by Faust from its changelog.

Keys: see model.contract.sequence; the worker adds b"c" + user (campaign memory) and
b"m" (arrival of the newest record, and the source offset after it).
"""

from __future__ import annotations

import logging
import shutil
import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import faust
from faust.stores.rocksdb import Store as RocksStore
from faust.types import TP
from rocksdict import WriteBatch, WriteOptions

log = logging.getLogger(__name__)

TABLE_NAME = "user-sequences"
CAMPAIGN_KEY, MARK_KEY, HEAD_KEY, STREAM_KEY = b"c", b"m", b"s", b"t"
MARK = struct.Struct(">qq")
ROCKSDB_OPTIONS = {"write_buffer_size": 32 << 20, "block_cache_size": 64 << 20, "target_file_size_base": 32 << 20}

Updates = Mapping[bytes, bytes | None]

# The changelog is the log: values leave the memtable with their offset there, so a lost memtable is read again.
_NO_WAL = WriteOptions()
_NO_WAL.disable_wal = True  # type: ignore[assignment, method-assign]  # a property that its stub calls a method


class RebuildingStore(RocksStore):
    """RocksDB that starts a partition empty when its files are damaged: the changelog restores it."""

    def _open_for_partition(self, partition: int) -> Any:
        try:
            return super()._open_for_partition(partition)
        except Exception as error:
            if "lock" in str(error).lower():
                raise  # another process holds it: Faust waits and tries again
            log.error(
                "local state of partition %d cannot be opened (%s): rebuilding it from the changelog", partition, error
            )
            shutil.rmtree(self.partition_path(partition), ignore_errors=True)
            return super()._open_for_partition(partition)


class SequenceTable(faust.Table[bytes, bytes]):
    """Raw bytes by partition and key, as of the transactions committed so far.

    RocksDB gets the updates of several transactions at once, since most are of the same users again, and with them the
    changelog offset at which they end: whatever is lost with the process is read again from there.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.key_serializer = self.value_serializer = "raw"  # Table() takes no serializers
        changelog: Any = self.changelog_topic
        changelog.key_serializer = changelog.value_serializer = "raw"
        self._memory: dict[int, dict[bytes, bytes]] = defaultdict(dict)
        self._unwritten: dict[int, dict[bytes, bytes | None]] = defaultdict(dict)  # what RocksDB does not have yet

    def _new_store_by_url(self, url: Any) -> Any:
        if str(url).startswith("rocksdb:"):
            return RebuildingStore(
                url, self.app, self, table_name=self.name, options=dict(ROCKSDB_OPTIONS), loop=self.loop
            )
        return super()._new_store_by_url(url)

    @property
    def in_rocksdb(self) -> bool:
        return isinstance(self.data, RocksStore)

    def read(self, partition: int, key: bytes) -> bytes | None:
        """Return the committed value, or None."""
        if not self.in_rocksdb:
            return self._memory[partition].get(key)
        unwritten = self._unwritten[partition]
        value: bytes | None = unwritten[key] if key in unwritten else self._db(partition).get(key)
        return value

    def scan(self, partition: int, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield the committed (key, value) pairs whose key starts with `prefix`, in no particular order."""
        self.flush(partition)
        items = self._db(partition).items(from_key=prefix) if self.in_rocksdb else list(self._memory[partition].items())
        for key, value in items:
            if key.startswith(prefix):
                yield key, value
            elif self.in_rocksdb:
                return

    def write(self, partition: int, updates: Updates, changelog_offset: int | None) -> None:
        """Apply updates (None deletes), which end at a changelog offset."""
        if self.in_rocksdb:
            unwritten = self._unwritten[partition]
            unwritten.update(updates)
            if changelog_offset is not None:
                unwritten[RocksStore.offset_key] = str(changelog_offset).encode()
            return
        rows = self._memory[partition]
        for key, value in updates.items():
            if value is None:
                rows.pop(key, None)
            else:
                rows[key] = value

    def flush(self, partition: int, most: int = 0) -> bool:
        """Write a partition's updates to RocksDB atomically if there are more than so many; tell whether it did."""
        if len(self._unwritten[partition]) <= most:
            return False
        batch = WriteBatch(raw_mode=True)
        for key, value in self._unwritten.pop(partition).items():
            if value is None:
                batch.delete(key)
            else:
                batch.put(key, value)
        self._db(partition).write(batch, _NO_WAL)
        return True

    def forget_offset(self, partition: int) -> None:
        """Distrust the local state: the next start reads the whole changelog over it."""
        self._unwritten.pop(partition, None)
        if self.in_rocksdb:
            self._db(partition).delete(RocksStore.offset_key)

    def restore(self, partition: int, records: Iterable[Any], last: int) -> None:
        """Apply changelog records, oldest first; `last` is the offset that they end at."""
        self.write(partition, {record.key: record.value for record in records}, last)
        self.flush(partition)

    async def on_recovery_completed(self, active_tps: set[TP], standby_tps: set[TP]) -> None:
        await super().on_recovery_completed(active_tps, standby_tps)
        kept = {tp.partition for tp in active_tps | standby_tps}
        for partition in set(self._memory) - kept:
            del self._memory[partition]

    def _db(self, partition: int) -> Any:
        store: Any = self.data
        return store._db_for_partition(partition)
