"""A real worker on a real broker sends the spans of traced clicks to a collector, and hands their traces on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from model.contract.events import ClickEvent
from tests.support.collector import Collector
from tests.support.stack import Stack, wait, wire

pytest.importorskip("opentelemetry.sdk", reason="the extra `tracing` is not installed")

CLICKS = ["a1" * 8, "b2" * 8]  # span ids of producers; the trace is the id twice
LONE = "c3" * 8


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


@pytest.fixture
def stack(broker: str, unique: Callable[[str], str], tmp_path: Path, collector: Collector) -> Iterator[Stack]:
    environment = {"FUNNELCAST_TRACING_ENDPOINT": collector.endpoint, "FUNNELCAST_TRACING_SHARE": "0"}
    stack = Stack(broker, unique, tmp_path, partitions=1, environment=environment)
    yield stack
    stack.close()


def produce(stack: Stack, number: int, span: str | None) -> None:
    event = ClickEvent("ann", "page_view", 1_511_568_183_000 + number, message_id=f"{number}")
    headers = [] if span is None else [("traceparent", f"00-{span * 2}-{span}-01".encode())]
    producer = stack.producer()
    producer.send(stack.topics["clickstream"], key=b"ann", value=wire(event), headers=headers)
    producer.flush()
    producer.close()


def test_traced_clicks_are_followed_to_their_answers_and_others_are_not(stack: Stack, collector: Collector) -> None:
    for number, span in enumerate([*CLICKS, None]):
        produce(stack, number, span)
    stack.start("a")
    stack.wait_ready("a")
    stack.wait_answered()  # those that waited came as one chunk
    produce(stack, 3, LONE)
    stack.wait_answered()
    produce(stack, 4, None)
    stack.wait_answered()
    assert stack.terminate("a") == 0
    wait(lambda: len(collector.named("emit")) == 2, 10, lambda: f"{collector.spans}\n{stack.log('a')[-2000:]}")

    together, lone = collector.named("chunk")
    assert (together.parent, together.links) == ("", CLICKS)
    assert (lone.parent, lone.trace, lone.links) == (LONE, LONE * 2, [])
    assert together.attributes["messaging.batch.message_count"] == 3
    assert (together.service, together.attributes["messaging.destination.name"]) == (
        stack.app_id,
        stack.topics["clickstream"],
    )
    assert {score.parent for score in collector.named("score")} == {together.span, lone.span}
    first, second = collector.named("emit")
    assert (first.parent, second.parent) == (together.span, lone.span)
    assert second.events == ["answered", "acknowledged"]
    assert len(collector.spans) == len(collector.named("score")) + 4, "the untraced click made a span"

    answers = [a for a in stack.read(stack.topics["stage_probabilities"]) if a.json()["event_type"] == "page_view"]
    carried = [answer.headers.get("traceparent", "").rpartition("-")[0] for answer in answers]
    assert carried == [f"00-{emit.trace}-{emit.span}" for emit in (first, first, first, second)] + [""]
    assert not any("traceparent" in record.headers for record in stack.read(f"{stack.app_id}-user-sequences-changelog"))
    stack.verify()
