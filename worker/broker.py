"""Connections to Kafka: settings in, options of every client out; for the commands an open client, closed at the end.

Every failure of Kafka leaves as one sentence; the client's own logging is silenced, it would bury that sentence.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from kafka import KafkaAdminClient
from kafka.errors import KafkaError

from model.contract.errors import FunnelcastError
from worker.settings import Settings

CONNECT_MS = 4000  # a person waits for this sentence


class BrokerError(FunnelcastError):
    """The broker does not answer, or does not do what was asked."""


def tls_context(settings: Settings) -> ssl.SSLContext | None:
    """Return what the broker's certificate is checked with, and our own certificate; None without TLS."""
    if not settings.security_protocol.endswith("SSL"):
        return None
    try:
        context = ssl.create_default_context(cafile=settings.tls_ca_file)
        if settings.tls_cert_file is not None:
            context.load_cert_chain(settings.tls_cert_file, settings.tls_key_file)
    except OSError as error:  # unreadable, or no PEM
        raise BrokerError(
            f"the TLS files {settings.tls_ca_file}, {settings.tls_cert_file} and {settings.tls_key_file} cannot be "
            f"loaded ({error}); each must be PEM, the key without a password"
        ) from error
    return context


def client_options(settings: Settings) -> dict[str, Any]:
    """Return the options for encryption and authentication, which kafka-python and aiokafka name alike."""
    options: dict[str, Any] = {"security_protocol": settings.security_protocol}
    if (context := tls_context(settings)) is not None:
        options["ssl_context"] = context
    if settings.security_protocol.startswith("SASL_"):
        options["sasl_mechanism"] = settings.sasl_mechanism
        options["sasl_plain_username"] = settings.sasl_username
        options["sasl_plain_password"] = settings.sasl_password.get_secret_value()
    return options


@contextmanager
def connected(client: Callable[..., Any], broker: str, **options: object) -> Iterator[Any]:
    """Open a kafka-python client for the length of the block."""
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    try:
        opened = client(bootstrap_servers=broker.split(","), bootstrap_timeout_ms=CONNECT_MS, **options)
    except KafkaError:
        # The client retries whatever fails, and keeps to itself why.
        protocol = options.get("security_protocol", "PLAINTEXT")
        secured = (
            f" with {protocol}; correct the user, the password or the TLS files" if protocol != "PLAINTEXT" else ""
        )
        raise BrokerError(
            f"no Kafka broker answers at {broker}{secured}; "
            "start it, or name another one with --broker or FUNNELCAST_BROKER"
        ) from None
    try:
        yield opened
    except KafkaError as error:
        raise BrokerError(
            f"the Kafka broker at {broker} failed with {error}; look into its log, then try again"
        ) from error
    finally:
        opened.close()


def require_topics(broker: str, topics: list[str], **options: object) -> None:
    """Refuse topics that do not exist; a client would wait for them for a minute."""
    with connected(KafkaAdminClient, broker, **options) as admin:
        found = {topic["name"] for topic in admin.describe_topics(topics) if topic["error_code"] == 0}
    if missing := [topic for topic in topics if topic not in found]:
        raise BrokerError(f"{_listed(missing)} at {broker}; create what is missing with `funnelcast topics`")


def _listed(topics: list[str]) -> str:
    return f"there is no topic {topics[0]}" if len(topics) == 1 else f"there are no topics {', '.join(topics)}"
