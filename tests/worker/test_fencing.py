"""A partition's producer is started again only where nothing was asked of a broker yet."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from faust.types import TP

from worker import emitter
from worker.emitter import PartitionWriter
from worker.metrics import Metrics


class Client:
    closed = 0

    async def close(self) -> None:
        Client.closed += 1


class Producer:
    def __init__(self, error: BaseException | None) -> None:
        self.error, self.client, self.started = error, Client(), False

    async def start(self) -> None:
        if self.error is not None:
            raise self.error
        self.started = True


class Delivery:
    transaction_chunks = max_chunk = 1

    def __init__(self, *errors: BaseException | None) -> None:
        self.errors, self.made = list(errors), 0

    def producer(self, tp: TP) -> Producer:
        self.made += 1
        return Producer(self.errors.pop(0))


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emitter, "NO_BROKER_PAUSE_SECONDS", 0)


def writer(delivery: Any) -> Any:
    nothing: Any = None
    return PartitionWriter(TP("clicks", 0), nothing, delivery, None, nothing, Metrics())


def test_a_cluster_that_names_no_broker_for_a_moment_is_waited_for() -> None:
    delivery = Delivery(AssertionError("bootstrap"), AssertionError("bootstrap"), None)

    async def fence() -> bool:
        made = writer(delivery)
        await made.fence()
        return bool(made.producer.started)

    before = Client.closed
    assert asyncio.run(fence())
    assert (delivery.made, Client.closed - before) == (3, 2)


def test_any_other_failure_is_not_tried_again() -> None:
    delivery = Delivery(RuntimeError("fenced"), None)

    async def fence() -> None:
        await writer(delivery).fence()

    with pytest.raises(RuntimeError, match="fenced"):
        asyncio.run(fence())
    assert delivery.made == 1
