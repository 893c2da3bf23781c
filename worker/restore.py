"""Restore: the committed changelog in, the table of the assigned partitions out, before their first chunk is served.

Each recovery reads with a consumer of its own, which ends with it. Faust's recovery shares the consumer that serves:
records that a fetch of the last assignment returns after the seek of the new one are dropped, and the table keeps a
hole that nothing shows. It begins when nothing that earlier owners wrote is open: their transactions commit, or are
aborted by those who took over the partition that they are named after.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, cast

from aiokafka import AIOKafkaConsumer
from aiokafka.consumer.fetcher import READ_UNCOMMITTED
from aiokafka.errors import IllegalStateError, KafkaError
from faust.tables import TableManager
from faust.tables.recovery import RebalanceAgain, Recovery, ServiceStopped
from faust.types import TP
from mode import Service

from worker.transactions import SETTLE_SECONDS, settle

log = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
POLL_MS = 500
FETCH_BYTES = 4 << 20  # per partition: some 20,000 rows, applied in one write

Connect = Callable[[], AIOKafkaConsumer]
Apply = Callable[[TP, list[Any], int], None]


class Restorable(Protocol):
    """A table as restoring sees it."""

    def persisted_offset(self, tp: TP) -> int | None: ...

    def restore(self, partition: int, records: Iterable[Any], last: int) -> None: ...


async def read_log(consumer: AIOKafkaConsumer, starts: Mapping[TP, int], ends: Mapping[TP, int], apply: Apply) -> None:
    """Read each partition from its start offset until the position is at its end offset.

    `apply` takes the partition, its records (N,) and the position after them, which markers and aborted records
    advance too. Raises ValueError for a start behind the end.
    """
    for tp, start in starts.items():
        if start > ends[tp]:
            raise ValueError(
                f"the local state of {tp.topic}, partition {tp.partition} ends at offset {start}, the changelog at "
                f"{ends[tp]}: the topic lost records; if it was made anew, remove the state directory"
            )
    behind = {tp for tp, start in starts.items() if start < ends[tp]}
    consumer.assign(behind)
    for tp in behind:
        consumer.seek(tp, starts[tp])
    while behind:
        fetched = await consumer.getmany(timeout_ms=POLL_MS)
        for tp in list(behind):
            position = await consumer.position(tp)
            if tp in fetched or position >= ends[tp]:
                apply(tp, fetched.get(tp, []), position)
            if position >= ends[tp]:
                behind.remove(tp)


async def stable_ends(consumer: AIOKafkaConsumer, partitions: list[TP]) -> dict[TP, int]:
    """Return the end offsets of what is committed, once all that is written by now is committed or aborted."""
    fetcher: Any = consumer._fetcher
    fetcher._isolation_level, committed = READ_UNCOMMITTED, fetcher._isolation_level
    try:
        written = await consumer.end_offsets(partitions)
    finally:
        fetcher._isolation_level = committed
    while True:
        ends: dict[TP, int] = await consumer.end_offsets(partitions)
        if all(ends[tp] >= written[tp] for tp in partitions):
            return ends
        await asyncio.sleep(SETTLE_SECONDS)


class Restoring(Recovery):
    """Faust's recovery with its own reading replaced; rebalances, signals and figures are Faust's."""

    connect: Connect
    group: str
    source: str  # topic
    on_restored: Callable[[], None]

    @Service.task
    async def _restart_recovery(self) -> None:
        while not self.should_stop:
            if await self.wait_for_stopped(self.signal_recovery_start.wait()):
                break
            self.signal_recovery_start.clear()
            generation = self._generation_id
            try:
                self._set_recovery_started()
                await self._wait(self._restore())
                await self._wait(self.on_recovery_completed(generation))
            except (RebalanceAgain, IllegalStateError):
                continue
            except ServiceStopped:
                break
            if self.app.consumer_generation_id == generation:
                self.on_restored()

    @Service.task
    async def _slurp_changelogs(self) -> None:
        """Do nothing: changelogs are not read through the serving consumer."""

    async def _restore(self) -> None:
        while True:
            try:
                return await self._read()
            except KafkaError as error:
                log.warning("the changelog cannot be read now, trying again: %r", error)
                await asyncio.sleep(RETRY_SECONDS)

    async def _read(self) -> None:
        tables: dict[TP, Any] = {tp: self.tp_to_table[tp] for tp in self.active_tps}
        if not tables:
            return
        starts = {tp: self._start(tables[tp], tp) for tp in tables}
        consumer, rows = self.connect(), 0
        await consumer.start()
        try:
            await settle(consumer._client, self.group, [TP(self.source, tp.partition) for tp in tables])
            ends = await stable_ends(consumer, list(tables))
            self.active_highwaters, self.active_offsets = Counter(ends), Counter(starts)  # what the metric shows

            def apply(tp: TP, records: list[Any], position: int) -> None:
                nonlocal rows
                rows += len(records)
                tables[tp].restore(tp.partition, records, position - 1)
                self.active_offsets[tp] = position

            started = time.monotonic()
            await read_log(consumer, starts, ends, apply)
            log.info("%d rows read from the changelog in %.3f s", rows, time.monotonic() - started)
        finally:
            await consumer.stop()

    @staticmethod
    def _start(table: Restorable, tp: TP) -> int:
        last = table.persisted_offset(tp)
        return 0 if last is None else last + 1


class Tables(TableManager):
    """Faust's table manager with `Restoring` for its recovery."""

    @property
    def recovery(self) -> Restoring:
        if self._recovery is None:
            self._recovery = Restoring(self.app, self, beacon=self.beacon, loop=self.loop)
        return cast(Restoring, self._recovery)


def changelog_reader(brokers: list[str], client_options: Mapping[str, Any]) -> AIOKafkaConsumer:
    """Return a consumer of committed records that belongs to no group."""
    return AIOKafkaConsumer(
        bootstrap_servers=brokers,
        isolation_level="read_committed",
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        max_partition_fetch_bytes=FETCH_BYTES,
        **client_options,
    )
