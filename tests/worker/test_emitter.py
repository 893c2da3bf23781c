"""A full queue for the network pauses fetching: the writers wait, their queues fill, and the agent waits for them.

And what a transaction is told ahead: the topics that it probably writes to, and the offsets that its chunks end at.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from faust.types import TP

import worker.assignment
from tests.support.hand_loop import HandExecutor, play, settle
from tests.support.partitions import Table, plain_rooms
from worker.assignment import SOON_SECONDS, Assignment
from worker.batcher import Batcher
from worker.emitter import Emitter
from worker.lanes import Limits
from worker.metrics import Metrics
from worker.outbox import Delivery
from worker.partitions import Partitions
from worker.pieces import Piece, Scores
from worker.rounds import Rounds
from worker.transport import Membership

TRANSACTION_CHUNKS = 2
PLACE = TP("clicks", 0)


class Committed:
    """Acknowledges everything at once; remembers the commits (worker.transactions.Transactions)."""

    def __init__(self) -> None:
        self.offsets: list[int] = []
        self.registered: list[set[str]] = []
        self.calls: list[str] = []

    async def begin(self) -> None:
        self.calls.append("begin")
        self.registered.append(set())

    def register(self, targets: Any, has_offsets: bool) -> None:
        self.registered[-1] |= {topic for topic, _ in targets}

    async def commit(self) -> None:
        self.calls.append("commit")

    def create_batch(self) -> Any:
        return SimpleNamespace(append=lambda **record: record, record_count=lambda: 1)

    async def send_batch(self, batch: Any, topic: str, partition: int) -> asyncio.Future[Any]:
        self.calls.append("send")
        done = asyncio.get_running_loop().create_future()
        done.set_result(SimpleNamespace(offset=0))
        return done

    async def send_offsets(self, offsets: dict[Any, int]) -> None:
        self.calls.append("offsets")
        self.offsets += offsets.values()

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


class Network:
    """Answers zeros."""

    def run(self, pieces: Sequence[Piece]) -> list[Scores]:
        sizes = [len(piece.rows) for piece in pieces]
        return [Scores(np.zeros((n, 2, 6), "f4"), np.zeros((n, 20), "f4"), np.zeros(n, bool)) for n in sizes]


class Chunk:
    """One fetched chunk: a click of a new user."""

    def __init__(self, number: int, event: bytes = b"click", place: TP = PLACE) -> None:
        value = b'{"user_id":"u%d","event":"%b","timestamp":%d}' % (number, event, 1_700_000_000_000 + number)
        key, timestamp = b"u%d" % number, 1_700_000_000_000
        self.value = [SimpleNamespace(key=key, value=value, offset=number, timestamp=timestamp, headers=())]
        self.message = SimpleNamespace(tp=place, generation_id=1, start=number or None, offset=number)
        self.acked = False

    def ack(self) -> None:
        self.acked = True


def make_assignment(
    batcher: Batcher, metrics: Metrics, transactions: Any, places: Sequence[TP] = (PLACE,)
) -> Assignment:
    table: Any = Table()
    delivery = Delivery(["nowhere:1"], "app", "probabilities", "changelog", TRANSACTION_CHUNKS, 1)
    partitions = Partitions([place.partition for place in places], table, plain_rooms(metrics))
    return Assignment(places, partitions, transactions, delivery, batcher, table, metrics, Rounds())


def test_when_the_network_cannot_follow_the_agent_waits_and_nothing_is_lost() -> None:
    async def story() -> None:
        executor, metrics, transactions = HandExecutor(), Metrics(), Committed()
        batcher = Batcher(Network(), Limits(1, 0.0, waiting_users=1, target_seconds=1e6), metrics, executor)
        app = SimpleNamespace(consumer_generation_id=1)
        emitter = Emitter(app, lambda places, member: make_assignment(batcher, metrics, transactions), metrics)
        await emitter.open([PLACE], Membership("group", 1, "member", None))
        emitter.start()
        chunks = [Chunk(number) for number in range(12)]

        async def agent() -> None:
            for chunk in chunks:
                await emitter.submit(chunk)

        fetching = asyncio.ensure_future(agent())
        for _ in range(5):
            await settle()
        assert not fetching.done()
        assert len(emitter.writers[PLACE].waiting) == TRANSACTION_CHUNKS
        assert not any(chunk.acked for chunk in chunks)
        while not all(chunk.acked for chunk in chunks):
            if executor.runs:
                executor.finish()
            await settle()
        assert fetching.done()
        assert transactions.offsets == sorted(transactions.offsets)
        assert transactions.offsets[-1] == 12
        await emitter.close()

    play(story)


async def transact(assignment: Assignment, number: int, event: bytes = b"click", place: TP = PLACE) -> None:
    """Let one click be answered and stored."""
    chunk: Any = Chunk(number, event, place)
    await assignment.put(chunk)
    while not chunk.acked:
        await asyncio.sleep(0.001)


def test_topics_that_the_latest_transaction_wrote_to_are_registered_before_the_next_is_answered() -> None:
    async def story() -> None:
        metrics, transactions = Metrics(), Committed()
        assignment = make_assignment(Batcher(Network(), Limits(), metrics), metrics, transactions)
        serving = asyncio.ensure_future(assignment.run())
        for number, event in enumerate((b"click", b"no such event", b"click", b"click")):
            await transact(assignment, number, event)
            await asyncio.sleep(1.5 * SOON_SECONDS)  # none is begun ahead
        serving.cancel()
        always = {"probabilities", "changelog"}
        assert transactions.registered == [always, always, {*always, "dead"}, always]

    asyncio.run(story())


def test_source_offsets_are_sent_before_the_answers_and_the_commit_follows_these() -> None:
    async def story() -> None:
        metrics, transactions = Metrics(), Committed()
        assignment = make_assignment(Batcher(Network(), Limits(), metrics), metrics, transactions)
        serving = asyncio.ensure_future(assignment.run())
        await transact(assignment, 0)
        serving.cancel()
        assert transactions.calls == ["begin", "offsets", "send", "send", "commit"]

    asyncio.run(story())


def test_a_transaction_holds_the_offsets_of_all_partitions_that_were_read_though_it_has_clicks_of_one() -> None:
    """Else the next owner of another, whose sessions it may end, would not wait for it."""

    async def story() -> None:
        metrics, transactions, other = Metrics(), Committed(), TP(PLACE.topic, 1)
        assignment = make_assignment(Batcher(Network(), Limits(), metrics), metrics, transactions, (PLACE, other))
        serving = asyncio.ensure_future(assignment.run())
        await transact(assignment, 0)
        await transact(assignment, 0, place=other)
        await transact(assignment, 1)
        serving.cancel()
        assert transactions.offsets == [1, 1, 1, 2, 1]

    asyncio.run(story())


def test_where_clicks_come_all_the_time_transactions_are_begun_ahead_and_an_unused_one_is_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker.assignment, "SOON_SECONDS", 60.0)  # however busy the machine is

    async def story() -> None:
        metrics, transactions = Metrics(), Committed()
        assignment = make_assignment(Batcher(Network(), Limits(), metrics), metrics, transactions)
        serving = asyncio.ensure_future(assignment.run())

        async def calls(count: int) -> list[str]:
            async with asyncio.timeout(20):
                while len(transactions.calls) < count:
                    await asyncio.sleep(0.001)
            return transactions.calls

        one = ["begin", "offsets", "send", "send", "commit"]
        for number in range(3):
            await transact(assignment, number)
        assert (await calls(16))[:16] == [*one, *one, *one, "begin"]
        assert (await calls(17))[15:] == ["begin", "commit"]
        await transact(assignment, 3)
        assert (await calls(22))[17:22] == one
        serving.cancel()

    asyncio.run(story())
