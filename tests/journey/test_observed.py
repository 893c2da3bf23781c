"""What Prometheus, its alerts and the dashboards say of two live workers is what the topics say.

OBSERVED_PICTURES=folder leaves a picture of each dashboard there.
"""

from __future__ import annotations

import collections
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaConsumer, TopicPartition
from kafka.admin import KafkaAdminClient

from model.contract.events import ClickEvent
from tests.support import pictures
from tests.support.clicks import TAOBAO, real_clicks
from tests.support.expectation import expect
from tests.support.monitoring import Monitoring, require_programs
from tests.support.stack import ROOT, Stack, free_port, wait, wire

DASHBOARDS = sorted((ROOT / "deploy" / "grafana" / "dashboards").glob("*.json"))
PER_SECOND = 250
CAMPAIGNS = """
version: 1
campaigns:
  - {name: nudge-interest, rule: below, stage: interest, scope: category, threshold: 0.9, holdout: 0.3}
  - {name: nudge-intent, rule: below, stage: intent, scope: user, threshold: 0.9, cooldown_hours: 12, holdout: 0.3}
"""


@pytest.fixture
def stack(broker: str, unique: Callable[[str], str], tmp_path: Path) -> Iterator[Stack]:
    require_programs()
    (tmp_path / "campaigns.yaml").write_text(CAMPAIGNS)
    environment = {"FUNNELCAST_CAMPAIGNS": str(tmp_path / "campaigns.yaml")}
    stack = Stack(broker, unique, tmp_path, environment=environment)
    yield stack
    stack.close()


@pytest.fixture
def monitoring(stack: Stack, tmp_path: Path) -> Iterator[Monitoring]:
    """Two ready workers and who watches them."""
    ports = {tag: free_port() for tag in "ab"}
    monitoring = Monitoring(tmp_path, {"funnelcast": [f"127.0.0.1:{port}" for port in ports.values()]})
    try:
        for tag, port in ports.items():
            start_at(stack, tag, port)
        for tag in ports:
            stack.wait_ready(tag)
        wait(lambda: stack.is_ready("a") and stack.is_ready("b"), 60, lambda: stack.log("a")[-2000:])
        yield monitoring
    finally:
        monitoring.close()


def start_at(stack: Stack, tag: str, port: int) -> None:
    stack.start(tag, FUNNELCAST_HTTP_PORT=str(port))
    stack.ports[tag] = port


def test_numbers_panels_and_alerts_tell_what_happened(stack: Stack, monitoring: Monitoring) -> None:
    started = time.time()
    events = real_clicks(70 if TAOBAO.exists() else 50)
    odd(stack, events[0])
    stack.produce(events, PER_SECOND)
    if folder := os.environ.get("OBSERVED_PICTURES"):
        take_pictures(monitoring, started, Path(folder).resolve())
    odd(stack, events[-1])
    stack.wait_answered()
    stack.verify()
    drained = time.time()
    monitoring.scraped_since(drained)
    assert_counters_equal_the_topics(stack, monitoring)
    assert_every_panel_has_data(monitoring, started, drained)
    assert_a_stopped_worker_is_told_and_taken_back(stack, monitoring)


def odd(stack: Stack, event: ClickEvent) -> None:
    """Produce what is refused: unreadable records, a duplicate and an event that is late."""
    producer, topic, key = stack.producer(), stack.topics["clickstream"], event.user_id.encode()
    later = ClickEvent(event.user_id, "page_view", event.timestamp + 120_000, message_id=f"later-{event.timestamp}")
    late = ClickEvent(event.user_id, "page_view", event.timestamp + 30_000, message_id=f"late-{event.timestamp}")
    for value in (b"{", b"[]", b"{", wire(later), wire(later), wire(late)):
        producer.send(topic, key=key, value=value)
    producer.flush()
    producer.close()


def assert_counters_equal_the_topics(stack: Stack, monitoring: Monitoring) -> None:
    topics = {name: stack.read(topic) for name, topic in stack.topics.items()}
    answers = [record.json() for record in topics["stage_probabilities"]]
    clicks = topics["clickstream"]
    expected = expect(clicks)
    total = len(clicks)
    assert monitoring.value("sum(funnelcast_records_consumed_total)") == total
    assert monitoring.value("sum(funnelcast_end_to_end_seconds_count)") == total
    assert monitoring.by("partition", "sum by (partition) (funnelcast_records_consumed_total)") == {
        str(partition): count for partition, count in collections.Counter(r.partition for r in clicks).items()
    }
    assert counted(monitoring, "reason", "funnelcast_records_rejected_total") == collections.Counter(
        record.headers["reason"] for record in topics["dead_letters"]
    )
    assert len(topics["dead_letters"]) == 6
    assert monitoring.value("sum(funnelcast_events_late_total)") == len(topics["late"]) > 0
    assert monitoring.value("sum(funnelcast_events_duplicate_total)") == expected.duplicates > 0
    assert monitoring.value("sum(funnelcast_stage_probabilities_emitted_total)") == len(answers)
    assert monitoring.value("sum(funnelcast_stage_probabilities_degraded_total)") == 0
    ends = [answer for answer in answers if answer["event_type"] == "session_end"]
    assert counted(monitoring, "stage", "funnelcast_sessions_ended_total") == collections.Counter(
        answer["stage"] for answer in ends
    )
    assert counted(monitoring, "type", "funnelcast_events_answered_total") == collections.Counter(
        answer["event_type"] for answer in answers if answer["event_type"] != "session_end"
    )
    assert counted(monitoring, "campaign", "funnelcast_triggers_emitted_total") == collections.Counter(
        record.json()["campaign"] for record in topics["triggers"]
    )
    reach = 'funnelcast_reach_probability_{}{{scope="user", stage="intent"}}'
    assert monitoring.value(f"sum({reach.format('count')})") == len(answers)
    chances = sum(answer["user_probabilities"]["intent"] for answer in answers)
    assert monitoring.value(f"sum({reach.format('sum')})") == pytest.approx(chances, rel=1e-4)
    assert lag(monitoring) == {str(partition): 0 for partition in range(stack.partitions)}


def counted(monitoring: Monitoring, label: str, metric: str) -> dict[str, float]:
    """Return the counts above 0 by a label."""
    return {name: n for name, n in monitoring.by(label, f"sum by ({label}) ({metric})").items() if n}


def lag(monitoring: Monitoring) -> dict[str, float]:
    return monitoring.by("partition", "sum by (partition) (funnelcast_consumer_lag_messages)")


def boards() -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text()) for path in DASHBOARDS}


def panels_question(monitoring: Monitoring, start: float, end: float) -> pictures.Ask:
    """Return what answers a panel's query as Grafana would for this time."""
    seconds = round(end - start)

    def ask(expression: str) -> list[dict[str, Any]]:
        query = expression.replace("$job", ".*").replace("$__rate_interval", "10s")
        query = query.replace("$__range", f"{seconds}s").replace("[1h]", f"[{seconds}s]")
        return monitoring.query_range(query, start, end)

    return ask


def take_pictures(monitoring: Monitoring, started: float, folder: Path) -> None:
    """Draw the dashboards while clicks come."""
    for name, board in boards().items():
        pictures.take(board, panels_question(monitoring, started, time.time()), folder / f"{name}.png")


def assert_every_panel_has_data(monitoring: Monitoring, started: float, drained: float) -> None:
    ask = panels_question(monitoring, started, drained + 2)
    empty = [
        (name, panel["title"], target["expr"])
        for name, board in boards().items()
        for panel in board["panels"]
        for target in panel.get("targets", ())
        if not any(math.isfinite(float(value)) for series in ask(target["expr"]) for _, value in series["values"])
    ]
    assert not empty, "\n".join(map(str, empty))


def assert_a_stopped_worker_is_told_and_taken_back(stack: Stack, monitoring: Monitoring) -> None:
    name, webhook, port = "FunnelcastWorkerDown", monitoring.webhook, stack.ports["b"]
    instance = f"127.0.0.1:{port}"
    webhook.alerts.clear()  # workers that start are down too, for the shortened time
    assert stack.terminate("b") == 0
    wait(lambda: bool(webhook.got(name, "firing", instance=instance)), 30, lambda: str(webhook.alerts))
    [told] = webhook.got(name, "firing")
    assert told["annotations"]["runbook_url"] == "deploy/docs/runbook.md#funnelcastworkerdown"
    assert told["labels"]["severity"] == "critical"
    assert not webhook.got("FunnelcastNoWorker", "firing")
    start_at(stack, "b", port)
    stack.wait_ready("b")
    wait(lambda: bool(webhook.got(name, "resolved", instance=instance)), 60, lambda: str(webhook.alerts))


def test_lag_in_prometheus_is_end_minus_committed_while_clicks_wait(
    broker: str, unique: Callable[[str], str], tmp_path: Path
) -> None:
    require_programs()
    # The micro-batch waits for 8 s, so its transaction stays open, and the lag stands still and can be compared.
    stack = Stack(
        broker,
        unique,
        tmp_path,
        environment={
            "FUNNELCAST_BATCH_WAIT_SECONDS": "8",
            "FUNNELCAST_BATCH_SIZE": "4096",
            "FUNNELCAST_LATENCY_TARGET_SECONDS": "60",  # else the wait is cut to what a short target allows
        },
    )
    monitoring = Monitoring(tmp_path, {"funnelcast": [f"127.0.0.1:{(port := free_port())}"]})
    try:
        start_at(stack, "a", port)
        stack.wait_ready("a")
        wait(lambda: lag(monitoring) == dict.fromkeys("0123", 0), 20, lambda: f"{lag(monitoring)}")
        produced_at = time.time()
        stack.produce(real_clicks(12)[:100])
        time.sleep(1.5)  # fetched, counted by the worker once a second
        monitoring.scraped_since(time.time())
        seen = lag(monitoring)
        oldest = monitoring.value("max(funnelcast_consumer_lag_seconds)")
        age = time.time() - produced_at
        assert seen == end_minus_committed(stack)
        assert sum(seen.values()) == 100
        assert age - 3 < oldest < age + 1
        stack.wait_answered()
        monitoring.scraped_since(time.time() + 1)
        assert lag(monitoring) == end_minus_committed(stack) == dict.fromkeys("0123", 0)
        assert monitoring.value("max(funnelcast_consumer_lag_seconds)") == 0
    finally:
        monitoring.close()
        stack.close()


def end_minus_committed(stack: Stack) -> dict[str, float]:
    """Return the lag by partition as the broker has it."""
    tps = [TopicPartition(stack.topics["clickstream"], number) for number in range(stack.partitions)]
    consumer = KafkaConsumer(bootstrap_servers=stack.broker)
    ends = consumer.end_offsets(tps)
    consumer.close()
    admin = KafkaAdminClient(bootstrap_servers=stack.broker)
    committed = admin.list_group_offsets({stack.app_id: tps})[stack.app_id]
    admin.close()
    return {str(tp.partition): ends[tp] - (max(0, committed[tp].offset) if tp in committed else 0) for tp in tps}
