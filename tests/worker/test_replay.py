import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from kafka import KafkaConsumer, TopicPartition

from model.contract.events import ClickEvent
from tests.support.topics import create_topics
from worker.cli import main
from worker.replay import Pace, prepare, schedule, send

LOG = """user_id,event,timestamp,item_id
u1,product_view,1700000003000,i1
u2,product_view,1700000001000,i2
u1,cart_add,1700000002000,i1
u3,order,1700000002000,i3
u2,order,1700000009000,i2
"""


def event(user: str, seconds: int, message_id: str | None = None) -> ClickEvent:
    return ClickEvent(user_id=user, event="click", timestamp=seconds * 1000, message_id=message_id)


class FakeProducer:
    """Takes events like KafkaProducer; presses Ctrl-C after `until` of them, refuses those in `refused`."""

    def __init__(self, until: int | None = None, refused: frozenset[int] = frozenset()) -> None:
        self.until, self.refused = until, refused
        self.sent: list[tuple[float, bytes]] = []
        self.flushes = 0

    def send(self, topic: str, key: bytes, value: bytes) -> Any:
        if len(self.sent) == self.until:
            raise KeyboardInterrupt
        self.sent.append((time.monotonic(), key))
        number = len(self.sent)
        return SimpleNamespace(add_errback=lambda note: note(OSError("full")) if number in self.refused else None)

    def flush(self, timeout: float) -> None:
        self.flushes += 1


def test_events_leave_in_event_time_order_and_rows_of_one_time_keep_theirs() -> None:
    rows = [(0, event("a", 5)), (1, event("b", 2)), (2, event("a", 2)), (3, event("c", 1))]
    assert [e.message_id for e in prepare(rows, "log", None, None)] == ["log-3", "log-1", "log-2", "log-0"]


def test_message_ids_are_functions_of_log_and_row_unless_the_log_has_its_own() -> None:
    rows = [(7, event("a", 1)), (9, event("a", 2, "own"))]
    assert [e.message_id for e in prepare(rows, "clicks", None, None)] == ["clicks-7", "own"]


def test_users_keeps_all_events_of_the_first_users_met_and_limit_the_first_events_of_those() -> None:
    rows = [(0, event("a", 9)), (1, event("b", 1)), (2, event("c", 0)), (3, event("a", 3))]
    assert [e.message_id for e in prepare(rows, "l", 2, None)] == ["l-1", "l-3", "l-0"]
    assert [e.message_id for e in prepare(rows, "l", 2, 2)] == ["l-1", "l-3"]


def test_a_rate_spaces_events_evenly_and_a_speed_up_keeps_their_rhythm() -> None:
    events = [event("a", 10), event("a", 20), event("a", 50)]
    assert list(schedule(events, Pace(rate=4))) == [0, 0.25, 0.5]
    assert list(schedule(events, Pace(speed_up=10))) == [0, 1, 4]
    assert list(schedule(events, Pace())) == [0, 0, 0]


def test_no_event_is_sent_before_it_is_due() -> None:
    producer = FakeProducer()
    start = time.monotonic()
    assert send([event("a", 1)] * 5, producer, "clicks", Pace(rate=50)) == 5
    assert all(at - start >= number / 50 for number, (at, _) in enumerate(producer.sent))


def test_ctrl_c_flushes_what_was_sent_and_counts_it() -> None:
    producer = FakeProducer(until=3)
    assert send([event("a", 1)] * 9, producer, "clicks", Pace()) == 3
    assert producer.flushes == 1


def test_events_that_the_broker_refused_are_counted_and_end_in_an_error() -> None:
    with pytest.raises(Exception, match=r"^2 of 5 events were not taken by topic clicks \(first: full\)"):
        send([event("a", 1)] * 5, FakeProducer(refused=frozenset({2, 4})), "clicks", Pace())


@pytest.fixture
def topic(broker: str, unique: Callable[[str], str]) -> str:
    name = unique("clicks")
    create_topics(broker, name)
    return name


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "shop.csv"
    path.write_text(LOG)
    return path


def records(broker: str, topic: str, count: int) -> list[Any]:
    consumer = KafkaConsumer(bootstrap_servers=broker, group_id=None, auto_offset_reset="earliest")
    consumer.assign([TopicPartition(topic, number) for number in (0, 1)])
    found: list[Any] = []
    deadline = time.monotonic() + 20
    while len(found) < count and time.monotonic() < deadline:
        for batch in consumer.poll(timeout_ms=200).values():
            found += batch
    consumer.close()
    return found


def test_a_replayed_log_lies_in_the_topic_keyed_by_user_and_a_second_replay_repeats_its_ids(
    broker: str, topic: str, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["replay", str(log), "--broker", broker, "--topic", topic]
    assert main(arguments) == 0
    assert "5 events of 3 users sent" in capsys.readouterr().out
    assert main([*arguments, "--rate", "500"]) == 0
    found = records(broker, topic, 10)
    events = [msgspec.json.decode(record.value, type=ClickEvent) for record in found]
    assert [record.key.decode() for record in found] == [e.user_id for e in events]
    first = [e for e, record in zip(events, found, strict=True) if record.offset < len(found)]
    assert sorted(e.message_id or "" for e in first) == sorted(f"shop-{row}" for row in range(1, 6) for _ in range(2))
    for user in ("u1", "u2", "u3"):
        times = [e.timestamp for e in events if e.user_id == user]
        once = times[: len(times) // 2]
        assert times == sorted(once) * 2


def test_a_missing_topic_or_broker_and_an_empty_log_are_refused_in_one_sentence(
    broker: str, topic: str, log: Path, unique: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = unique("nowhere")
    assert main(["replay", str(log), "--broker", broker, "--topic", nowhere]) == 2
    assert f"there is no topic {nowhere} at {broker}; create" in capsys.readouterr().err
    assert main(["replay", str(log), "--broker", "127.0.0.1:1"]) == 2
    assert capsys.readouterr().err.startswith("funnelcast: no Kafka broker answers at 127.0.0.1:1")
    log.write_text("user_id,event,timestamp\n")
    assert main(["replay", str(log), "--broker", broker, "--topic", topic]) == 2
    assert "gave no event" in capsys.readouterr().err
