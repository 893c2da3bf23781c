"""Connections of the commands to Kafka: a bootstrap address in, an open kafka-python client out, closed at the end.

Every failure of Kafka leaves as one sentence; the client's own logging is silenced, it would bury that sentence.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from kafka import KafkaAdminClient
from kafka.errors import KafkaError

from model.contract.errors import FunnelcastError

CONNECT_MS = 4000  # a person waits for this sentence


class BrokerError(FunnelcastError):
    """The broker does not answer, or does not do what was asked."""


@contextmanager
def connected(client: Callable[..., Any], broker: str, **options: object) -> Iterator[Any]:
    """Open a kafka-python client for the length of the block."""
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    try:
        opened = client(bootstrap_servers=broker.split(","), bootstrap_timeout_ms=CONNECT_MS, **options)
    except KafkaError:
        raise BrokerError(
            f"no Kafka broker answers at {broker}; start it, or name another one with --broker or FUNNELCAST_BROKER"
        ) from None
    try:
        yield opened
    except KafkaError as error:
        raise BrokerError(
            f"the Kafka broker at {broker} failed with {error}; look into its log, then try again"
        ) from error
    finally:
        opened.close()


def require_topics(broker: str, topics: list[str]) -> None:
    """Refuse topics that do not exist; a client would wait for them for a minute."""
    with connected(KafkaAdminClient, broker) as admin:
        found = {topic["name"] for topic in admin.describe_topics(topics) if topic["error_code"] == 0}
    if missing := [topic for topic in topics if topic not in found]:
        raise BrokerError(f"{_listed(missing)} at {broker}; create what is missing with `funnelcast topics`")


def _listed(topics: list[str]) -> str:
    return f"there is no topic {topics[0]}" if len(topics) == 1 else f"there are no topics {', '.join(topics)}"
