"""A source partition without Kafka: an empty table, and rooms of default rules that write to topics of plain names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from model.contract.sequence import default_rules
from worker.decode import Bounds
from worker.metrics import Metrics
from worker.policy import load_policy
from worker.records import NO_MODEL, Encoder, Source
from worker.rooms import Rooms, Topics


class Table:
    """An empty table that forgets what is written."""

    def read(self, partition: int, key: bytes) -> bytes | None:
        return None

    def scan(self, partition: int, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        return iter(())

    def write(self, partition: int, changes: Any, last: int | None) -> None: ...

    def flush(self, partition: int, most: int) -> bool:
        return False


def plain_rooms(metrics: Metrics) -> Rooms:
    return Rooms(
        default_rules(),
        Bounds(),
        load_policy(None, "salt"),
        lambda partition: Encoder(Source("app", "clicks", partition), NO_MODEL),
        Topics("probabilities", "triggers", "dead", "late"),
        metrics,
    )
