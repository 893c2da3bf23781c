"""Spans begin where clicks are traced, follow one origin and link several, and put their context into the outputs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from worker.tracing import UNTRACED, TracingError, make_tracing

pytest.importorskip("opentelemetry.sdk", reason="the extra `tracing` is not installed")

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import format_span_id, format_trace_id

from worker.spans import MOST_LINKS, Traced, traces_address

ONE, TWO = "11" * 8, "22" * 8


@pytest.fixture
def kept() -> InMemorySpanExporter:
    return InMemorySpanExporter()


def tracing(kept: InMemorySpanExporter, share: float = 0.0) -> Traced:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(kept))
    return Traced(provider, share, "shop")


def click(span: str = "", flags: str = "01", value: bytes | None = None) -> Any:
    traceparent = value if value is not None else f"00-{span * 2}-{span}-{flags}".encode()
    return SimpleNamespace(offset=41, headers=[("traceparent", traceparent)] if span or value is not None else [])


def transact(traced: Traced, *chunks: Sequence[Any]) -> list[Any]:
    """Run a transaction of some chunks; return the headers that its answers get."""
    trace = traced.transaction()
    for chunk in chunks:
        trace.chunk({("clicks", 2): chunk})
    trace.emit()
    headers = list(trace.headers)
    trace.end()
    return headers


def parent(span: ReadableSpan) -> str:
    return "" if span.parent is None else format_span_id(span.parent.span_id)


def linked(span: ReadableSpan) -> list[str]:
    return [format_span_id(link.context.span_id) for link in span.links]


def own(span: ReadableSpan) -> str:
    return format_span_id(span.get_span_context().span_id)


def test_one_traced_click_is_the_parent_and_its_trace_goes_on_in_the_answer(kept: InMemorySpanExporter) -> None:
    headers = transact(tracing(kept), [click(), click(ONE), click()])
    chunk, emit = kept.get_finished_spans()
    assert (chunk.name, parent(chunk), linked(chunk)) == ("chunk", ONE, [])
    assert (emit.name, parent(emit), linked(emit)) == ("emit", own(chunk), [])
    assert chunk.attributes["messaging.batch.message_count"] == 3
    assert headers == [("traceparent", f"00-{ONE * 2}-{own(emit)}-01".encode())]


def test_several_traced_clicks_and_several_chunks_are_linked(kept: InMemorySpanExporter) -> None:
    transact(tracing(kept), [click(ONE), click(TWO), click(ONE)], [click(ONE)])
    first, second, emit = kept.get_finished_spans()
    assert (parent(first), linked(first)) == ("", [ONE, TWO])
    assert (parent(second), linked(second)) == (ONE, [])
    assert (parent(emit), linked(emit)) == ("", [own(first), own(second)])


def test_a_span_links_to_so_many_clicks_and_no_more(kept: InMemorySpanExporter) -> None:
    transact(tracing(kept), [click(f"{number:016x}") for number in range(1, MOST_LINKS + 10)])
    chunk, _ = kept.get_finished_spans()
    assert len(linked(chunk)) == MOST_LINKS


@pytest.mark.parametrize("header", [b"", b"\xff\xfe", b"00-zz-11-01", f"00-{'0' * 32}-{ONE}-01".encode()])
def test_a_header_that_is_no_context_is_no_trace(kept: InMemorySpanExporter, header: bytes) -> None:
    assert transact(tracing(kept), [click(value=header)]) == []
    assert not kept.get_finished_spans()


def test_clicks_that_their_producer_did_not_sample_start_no_span(kept: InMemorySpanExporter) -> None:
    assert transact(tracing(kept), [click(ONE, flags="00"), click()]) == []
    assert not kept.get_finished_spans()


def test_the_share_decides_on_chunks_that_nobody_traces(kept: InMemorySpanExporter) -> None:
    transact(tracing(kept, share=1.0), [click()])
    chunk, emit = kept.get_finished_spans()
    assert (parent(chunk), parent(emit)) == ("", own(chunk))


def test_a_micro_batch_links_to_the_chunks_that_its_users_came_in(kept: InMemorySpanExporter) -> None:
    traced, origins = tracing(kept), []
    for span in (ONE, TWO):
        trace = traced.transaction()
        trace.chunk({("clicks", 2): [click(span)]})
        origins.append(trace.origin)
    traced.score([None, origins[0], origins[0]], 3).end()
    traced.score([*origins, None], 9).end()
    assert traced.score([None], 1) is UNTRACED
    alone, together = kept.get_finished_spans()
    assert (alone.name, parent(alone)) == ("score", format_span_id(origins[0].span_id))
    assert format_trace_id(alone.get_span_context().trace_id) == ONE * 2
    assert (parent(together), linked(together)) == ("", [format_span_id(origin.span_id) for origin in origins])
    assert together.attributes["funnelcast.users"] == 9


def test_without_an_endpoint_nothing_is_traced_and_records_stay_the_same() -> None:
    off = make_tracing("", 1.0, "shop", "")
    assert off is UNTRACED
    trace = off.transaction()
    trace.chunk({("clicks", 2): [click(ONE)]})
    assert trace.origin is None
    assert not trace.headers


@pytest.mark.parametrize("given", ["http://c:4318", "http://c:4318/", "http://c:4318/v1/traces"])
def test_an_endpoint_without_a_path_gets_that_of_traces(given: str) -> None:
    assert traces_address(given) == "http://c:4318/v1/traces"
    assert traces_address("https://c/team/otlp") == "https://c/team/otlp"


def test_an_endpoint_without_the_extra_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "worker.spans")
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(TracingError, match=r"opentelemetry is not installed.*pip install 'funnelcast\[tracing\]'"):
        make_tracing("http://collector:4318/v1/traces", 0.1, "shop", "")
