"""Clicks into Kafka, and what a topic tells from outside: offsets, and whether an update was lost or repeated."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence

import numpy as np
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec

from tests.bench.measure import Figures, Unable

PARTITIONS, DAY_MS = 4, 86_400_000
KINDS = (b"product_view", b"cart_add", b"wishlist_add")
KIND_SHARES = (0.9, 0.05, 0.05)
ITEMS, CATEGORIES = 100_000, 300
CLICK = b'{"user_id":"u%d","event":"%b","timestamp":%d,"item_id":"i%d","category":"c%d","price":9.5}'
CHECKED = 50_000  # records of a run that are read back
QUIET = {"log_level": 0}
DELETED_SOON = {"file.delete.delay.ms": "1000", "segment.bytes": str(64 << 20)}

Click = tuple[int, bytes, int, bytes]  # partition, key, time in ms, value


def clicks(count: int, users: int, start_ms: int, span_ms: int, even: bool = False) -> Iterator[Click]:
    """Yield seeded synthetic clicks in time order over the span; few users have many.

    `even` gives all users the same number instead, one user after the other.
    """
    rng = np.random.default_rng(7)
    for first in range(0, count, 50_000):
        size = min(50_000, count - first)
        drawn = np.arange(first, first + size) * users // count if even else (users * rng.random(size) ** 2).astype(int)
        kind = rng.choice(len(KINDS), size, p=KIND_SHARES).tolist()
        time_ms = (start_ms + np.arange(first, first + size) * span_ms // count).tolist()
        item, category = rng.integers(0, ITEMS, size).tolist(), rng.integers(0, CATEGORIES, size).tolist()
        for u, k, t, i, c in zip(drawn.tolist(), kind, time_ms, item, category, strict=True):
            yield u % PARTITIONS, b"u%d" % u, t, CLICK % (u, KINDS[k], t, i, c)


def producer(broker: str, linger_ms: float) -> Producer:
    """Return a producer that costs little CPU."""
    return Producer({
        "bootstrap.servers": broker, "linger.ms": linger_ms, "batch.size": 256 << 10,
        "queue.buffering.max.messages": 500_000, **QUIET,
    })  # fmt: skip


def fill(broker: str, topic: str, events: Iterator[Click]) -> None:
    """Produce a backlog, each user to one partition."""
    to = producer(broker, 50)
    for partition, key, _, value in events:
        while True:
            try:
                to.produce(topic, value, key, partition)
                break
            except BufferError:
                to.poll(0.1)
    if to.flush(60):
        raise SystemExit("the broker did not take the backlog within 60 s")


class Topics:
    """Topics of a run, looked at from outside; deleted at the end."""

    def __init__(self, broker: str) -> None:
        self.broker = broker
        self._admin = AdminClient({"bootstrap.servers": broker, **QUIET})

    def create(self, *names: str, partitions: int = PARTITIONS, **config: str) -> None:
        """Create topics whose deletion frees the disk at once."""
        new = [NewTopic(name, partitions, 1, config=DELETED_SOON | config) for name in names]
        for future in self._admin.create_topics(new).values():
            future.result()
        for name in names:
            self._wait(name, partitions)

    def _wait(self, topic: str, partitions: int) -> None:
        """Wait until the new partitions have leaders."""
        for _ in range(600):
            self._admin.list_topics(topic, timeout=10)  # else the client may believe its first answer for minutes
            try:
                self.end(topic, partitions)
                return
            except KafkaException:
                time.sleep(0.1)
        raise Unable(f"the new topic {topic} has no leader after 60 s")

    def names(self, part: str) -> list[str]:
        """Return the topics that have this in their name."""
        return [name for name in self._admin.list_topics(timeout=10).topics if part in name]

    def delete(self, part: str) -> None:
        """Delete the topics that have this in their name."""
        names = self.names(part)
        for future in self._admin.delete_topics(names, operation_timeout=20).values() if names else ():
            future.result()

    def end(self, topic: str, partitions: int = PARTITIONS) -> int:
        """Return the sum of the end offsets."""
        asked = {TopicPartition(topic, number): OffsetSpec.latest() for number in range(partitions)}
        return sum(future.result().offset for future in self._admin.list_offsets(asked).values())


class Committed:
    """The offsets that a consumer group has committed for a topic."""

    def __init__(self, broker: str, group: str, topic: str) -> None:
        self._consumer = Consumer({"bootstrap.servers": broker, "group.id": group, **QUIET})
        self._partitions = [TopicPartition(topic, number) for number in range(PARTITIONS)]

    def __call__(self) -> int:
        try:
            places = self._consumer.committed(self._partitions, timeout=10)
        except KafkaException:  # the group has no coordinator yet
            return 0
        return sum(max(0, place.offset) for place in places)

    def close(self) -> None:
        self._consumer.close()


def read_back(broker: str, topic: str, counter: bytes) -> Figures:
    """Read the first answers: the number that they give to each user's events must run 1, 2, 3 ..."""
    number_of = re.compile(b'"user_id":"([^"]*)".*"%b":([0-9]+)' % counter).search
    last: dict[bytes, int] = {}
    read = wrong = 0
    for _, value in records(broker, [topic], CHECKED):
        found = number_of(value)
        if found is None:
            raise SystemExit(f"{topic}: an answer without a number: {value[:200]!r}")
        user, number = found[1], int(found[2])
        wrong += number != last.get(user, 0) + 1
        last[user] = number
        read += 1
    return {"read": read, "lost_or_repeated": wrong}


def records(
    broker: str, topics: Sequence[str], most: int, partitions: int = PARTITIONS
) -> Iterator[tuple[bytes, bytes]]:
    """Yield key and value of committed records, from the beginning to what is the end now, at most so many."""
    consumer = Consumer({
        "bootstrap.servers": broker, "group.id": "read-back", "isolation.level": "read_committed",
        "enable.auto.commit": False, "enable.partition.eof": True, "queued.min.messages": 500_000, **QUIET,
    })  # fmt: skip
    places = [TopicPartition(topic, number, 0) for topic in topics for number in range(partitions)]
    consumer.assign(places)
    open_, read, deadline = len(places), 0, time.monotonic() + 60
    while open_ and read < most and time.monotonic() < deadline:
        for message in consumer.consume(5000, 0.2):
            if message.error() is not None:
                open_ -= 1  # the end of a partition
            elif read < most:
                read += 1
                yield message.key() or b"", message.value() or b""
    consumer.close()
