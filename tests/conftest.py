"""Fixtures that any test may ask for: a real local Kafka, shared by the whole session, and names nobody else uses."""

from collections.abc import Callable, Iterator
from uuid import uuid4

import pytest
from local_kafka import LocalKafka


@pytest.fixture(scope="session")
def kafka() -> Iterator[LocalKafka]:
    """One Kafka node for all tests; a test that stops or freezes nodes starts its own."""
    with LocalKafka() as kafka:
        yield kafka


@pytest.fixture
def broker(kafka: LocalKafka) -> str:
    """The bootstrap address, host:port."""
    return kafka.bootstrap


@pytest.fixture
def unique() -> Callable[[str], str]:
    """Make a topic, group or application name unique to this test: unique("clicks") -> "clicks-1f09a7c2"."""
    suffix = uuid4().hex[:8]
    return lambda name: f"{name}-{suffix}"
