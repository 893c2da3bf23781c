"""Spans: chunks, micro-batches and transactions in, OpenTelemetry spans to an OTLP collector out.

One rule for all three: what comes from one traced origin is its child, so a lone click is one trace from its producer
to the reader of its answer; what comes from several begins a trace of its own and links to them. The W3C context of
clicks is taken from their Kafka headers, that of outputs is put there. Needs the extra `tracing`.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from importlib.metadata import version
from itertools import chain, islice
from typing import Any
from urllib.parse import urlsplit

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Link, SpanContext, SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from worker.records import Header
from worker.tracing import UNTRACED, Chunks, Span, Trace

MOST_LINKS = 128  # OpenTelemetry's own default of a span
# The last digit of the flags is odd where a context is sampled. Many producers put a context on every click and sample
# few: reading all of them would take longer than the fold.
FLAGS, SAMPLED = slice(54, 55), (b"1", b"3", b"5", b"7", b"9", b"b", b"d", b"f")
EXPORT_SECONDS = 5.0  # one try; a collector that is down shall not hold up the worker's end

_propagator = TraceContextTextMapPropagator()


def traces_address(endpoint: str) -> str:
    """Return the endpoint with OTLP's own path where it has none."""
    return endpoint if urlsplit(endpoint).path.strip("/") else endpoint.rstrip("/") + "/v1/traces"


def provider(endpoint: str, app_id: str, instance_id: str) -> TracerProvider:
    """Return what sends spans in the background, and what is left when the process ends."""
    resource = {"service.name": app_id, "service.version": version("funnelcast")}
    if instance_id:
        resource["service.instance.id"] = instance_id
    # Sampled here, by transaction: whoever made a span wanted it.
    made = TracerProvider(ALWAYS_ON, Resource.create(resource))
    made.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(traces_address(endpoint), timeout=EXPORT_SECONDS)))
    return made


class Traced:
    """Traces transactions whose clicks are traced, and a share of the others (worker.tracing.Tracing)."""

    def __init__(self, provider: trace.TracerProvider, share: float, app_id: str) -> None:
        self._tracer = provider.get_tracer("funnelcast")
        self._share, self._app_id = share, app_id

    def transaction(self) -> Trace:
        return TracedTransaction(self, {
            "messaging.system": "kafka",
            "messaging.consumer.group.name": self._app_id,
        })  # fmt: skip

    def score(self, origins: Iterable[SpanContext | None], users: int) -> Span:
        distinct = list({origin.span_id: origin for origin in origins if origin is not None}.values())
        return self.start("score", SpanKind.INTERNAL, distinct, {"funnelcast.users": users}) if distinct else UNTRACED

    def is_chosen(self) -> bool:
        """Draw whether to trace what nobody traces yet."""
        return random.random() < self._share

    def start(self, name: str, kind: SpanKind, origins: list[SpanContext], attributes: dict[str, Any]) -> trace.Span:
        """Begin the child of one origin, or a trace that links to several."""
        parent = trace.set_span_in_context(trace.NonRecordingSpan(origins[0])) if len(origins) == 1 else None
        links = [Link(origin) for origin in origins[:MOST_LINKS]] if len(origins) > 1 else None
        return self._tracer.start_span(name, parent, kind, attributes, links)


class TracedTransaction:
    """The spans of one transaction (worker.tracing.Trace)."""

    def __init__(self, tracing: Traced, attributes: dict[str, Any]) -> None:
        self._tracing, self._attributes = tracing, attributes
        self._chunks: list[SpanContext] = []  # those that are traced
        self._span: trace.Span | None = None  # at work: a chunk's, then the emission's
        self.headers: list[Header] = []

    @property
    def origin(self) -> SpanContext | None:
        return None if self._span is None else self._span.get_span_context()

    def chunk(self, records: Chunks) -> None:
        self.end()
        clicks = list(islice(traced_clicks(chain(*records.values())), MOST_LINKS))
        if clicks or self._tracing.is_chosen():
            (topic, partition), *others = records
            place = {} if others else {
                "messaging.destination.partition.id": str(partition),
                "messaging.kafka.offset": records[topic, partition][0].offset,
            }  # fmt: skip
            span = self._begin("chunk", SpanKind.CONSUMER, clicks, {
                "messaging.operation.name": "process",
                "messaging.destination.name": topic,
                "messaging.batch.message_count": sum(map(len, records.values())),
            } | place)  # fmt: skip
            self._chunks.append(span.get_span_context())

    def emit(self) -> None:
        self.end()
        if self._chunks:
            self._begin("emit", SpanKind.PRODUCER, self._chunks, {"messaging.operation.name": "send"})

    def event(self, name: str) -> None:
        if self._span is not None:
            self._span.add_event(name)

    def end(self) -> None:
        if self._span is not None:
            self._span.end()
        self._span, self.headers = None, []

    def _begin(self, name: str, kind: SpanKind, origins: list[SpanContext], attributes: dict[str, Any]) -> trace.Span:
        self._span = self._tracing.start(name, kind, origins, self._attributes | attributes)
        carrier: dict[str, str] = {}
        _propagator.inject(carrier, trace.set_span_in_context(self._span))
        self.headers = [(header, value.encode()) for header, value in carrier.items()]
        return self._span


def traced_clicks(records: Iterable[Any]) -> Iterable[SpanContext]:
    """Yield the distinct sampled contexts in the records' headers."""
    seen = set()
    for record in records:
        if any(name == "traceparent" and value and value[FLAGS] in SAMPLED for name, value in record.headers):
            carrier = {name: (value or b"").decode("ascii", "replace") for name, value in record.headers}
            context = trace.get_current_span(_propagator.extract(carrier)).get_span_context()
            if context.is_valid and context.trace_flags.sampled and context.span_id not in seen:
                seen.add(context.span_id)
                yield context
