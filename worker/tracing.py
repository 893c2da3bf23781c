"""Tracing's door: nothing traced in, nothing done; with an endpoint, OpenTelemetry behind it (worker/spans.py).

A transaction's trace has a span `chunk` for records, of one partition or several, that are decoded and folded at once
and a span `emit` for what is written and committed; a micro-batch of the network has a span `score`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from model.contract.errors import FunnelcastError
from worker.records import Header

Chunks: TypeAlias = Mapping[Any, Sequence[Any]]  # records by (topic, partition)
Origin: TypeAlias = Any  # what a piece of work comes from: a span's context, None where nobody traces


class TracingError(FunnelcastError):
    """Tracing that cannot be started."""


class Span(Protocol):
    """A span under way."""

    def end(self) -> None: ...


class Trace(Protocol):
    """What is traced of one transaction."""

    @property
    def origin(self) -> Origin:
        """What the blocks of the chunk at work come from."""

    def chunk(self, records: Chunks) -> None:
        """Begin the next chunk: a topic's records by partition."""

    def emit(self) -> None:
        """End the chunks; from now on answers are waited for, written and committed."""

    def event(self, name: str) -> None:
        """Note a moment of the emission."""

    @property
    def headers(self) -> Sequence[Header]:
        """The context of what is at work, which the records that it writes carry."""

    def end(self) -> None:
        """End the emission."""


class Tracing(Protocol):
    """Makes the traces of a worker."""

    def transaction(self) -> Trace:
        """Begin a transaction."""

    def score(self, origins: Iterable[Origin], users: int) -> Span:
        """Begin a run of the network over blocks of these origins."""


class Untraced:
    """Traces nothing: a transaction, a span and the tracing itself, at the cost of a call."""

    origin = None
    headers: Sequence[Header] = ()

    def transaction(self) -> Untraced:
        return self

    def score(self, origins: Iterable[Origin], users: int) -> Untraced:
        return self

    def chunk(self, records: Chunks) -> None: ...

    def emit(self) -> None: ...

    def event(self, name: str) -> None: ...

    def end(self) -> None: ...


UNTRACED = Untraced()


def make_tracing(endpoint: str, share: float, app_id: str, instance_id: str) -> Tracing:
    """Return what traces to an OTLP endpoint, if any: chunks that hold a traced click, and a share of the others."""
    if not endpoint:
        return UNTRACED
    try:
        from worker.spans import Traced, provider
    except ModuleNotFoundError as error:
        raise TracingError(
            f"cannot trace to {endpoint}: {error.name} is not installed, expected the extra `tracing`; "
            "pip install 'funnelcast[tracing]' or unset FUNNELCAST_TRACING_ENDPOINT"
        ) from error
    return Traced(provider(endpoint, app_id, instance_id), share, app_id)
