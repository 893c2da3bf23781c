import json
import threading
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from kafka import KafkaProducer

from model.contract.stages import STAGES
from tests.support.topics import create_topics
from worker.cli import main
from worker.watch import header, line, shortened

REACH = dict(zip(STAGES, (1.0, 0.99, 0.5, 0.2, 0.1, 0.0), strict=True))
ANSWER: dict[str, Any] = {
    "id": "abc-0-1",
    "user_id": "1000018",
    "event_time": 1511568183000,
    "arrival_time": 1511568184000,
    "event_type": "product_view",
    "category": "4756105",
    "stage": "interest",
    "category_probabilities": REACH,
    "user_probabilities": {stage: 1 - p for stage, p in REACH.items()},
    "next_event": {"product_view": 0.9},
    "sequence_length": 3,
    "model": {"name": "taobao", "version": "1", "sha256": "ab"},
    "degraded": False,
}
TRIGGER: dict[str, Any] = {
    "id": "0123456789abcdef",
    "user_id": "1000018",
    "campaign": "rescue-cart",
    "rule": "below",
    "stage": "purchase",
    "scope": "category",
    "probability": 0.123456,
    "threshold": 0.3,
    "group": "treatment",
    "reason": "cart left",
    "event_time": 1511568183000,
    "expires_at": 1511571783000,
    "model": {"name": "taobao", "version": "1", "sha256": "ab"},
}


def test_an_answer_shows_time_user_event_category_stage_and_the_chances_in_percent() -> None:
    shown = line(ANSWER).plain
    assert shown.split() == [
        *("11-25", "00:03", "100…18", "product_view", "4756105", "interest"),
        *("100", "99", "50", "20", "10", "0"),
    ]


def test_a_narrow_line_fits_eighty_columns_and_a_wide_one_adds_the_chances_anywhere() -> None:
    assert len(line(ANSWER).plain) == len(header(False).plain) <= 80
    assert line(ANSWER, wide=True).plain.split()[-6:] == ["0", "1", "50", "80", "90", "100"]


def test_user_ids_are_shortened_unless_full_ones_are_asked_for() -> None:
    assert shortened("1000018") == "100…18"
    assert shortened("u1") == "u1"
    assert "1000018" not in line(ANSWER).plain + line(TRIGGER).plain
    assert "1000018" in line(ANSWER, full_ids=True).plain


def test_answers_without_a_model_or_a_category_and_degraded_ones_are_shown_as_such() -> None:
    bare = line(ANSWER | {"category_probabilities": {}, "user_probabilities": {}, "category": None}).plain
    assert bare.split()[-7:] == ["interest", *"------"]
    assert line(ANSWER | {"degraded": True}).plain.endswith("degraded")


def test_a_trigger_names_campaign_stage_probability_and_threshold() -> None:
    assert line(TRIGGER).plain.endswith("▶ rescue-cart purchase here 0.12, below 0.3")


@pytest.fixture
def topics(broker: str, unique: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    names = unique("answers"), unique("triggers")
    monkeypatch.setenv("FUNNELCAST_BROKER", broker)
    monkeypatch.setenv("FUNNELCAST_STAGE_PROBABILITIES", names[0])
    monkeypatch.setenv("FUNNELCAST_TRIGGERS", names[1])
    create_topics(broker, *names)
    return names


def send(broker: str, transactional_id: str, *messages: tuple[str, dict[str, Any]], commit: bool = True) -> None:
    producer = KafkaProducer(bootstrap_servers=broker, transactional_id=transactional_id)
    producer.init_transactions()
    producer.begin_transaction()
    for topic, value in messages:
        producer.send(topic, msgspec.json.encode(value)).get(10)
    producer.commit_transaction() if commit else producer.abort_transaction()
    producer.close()


def test_watch_shows_committed_answers_and_triggers_and_never_aborted_ones(
    broker: str, topics: tuple[str, str], unique: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    answers, triggers = topics
    send(broker, unique("one"), (answers, ANSWER | {"category": "aborted"}), commit=False)
    send(broker, unique("two"), (answers, ANSWER), (triggers, TRIGGER))
    assert main(["watch", "--from-beginning", "--limit", "2"]) == 0
    out = capsys.readouterr().out
    assert "100…18  product_view 4756105" in out
    assert "▶ rescue-cart" in out
    assert "aborted" not in out


def test_json_lines_hold_place_and_whole_record(
    broker: str, topics: tuple[str, str], unique: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    send(broker, unique("id"), (topics[1], TRIGGER))
    assert main(["watch", "--from-beginning", "--limit", "1", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown.pop("partition") in (0, 1)
    assert shown == {"topic": topics[1], "offset": 0, "value": TRIGGER}


def test_watch_starts_with_now_unless_told_otherwise(
    broker: str, topics: tuple[str, str], unique: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    send(broker, unique("early"), (topics[0], ANSWER | {"category": "early"}))
    later = threading.Timer(2.0, send, (broker, unique("late"), (topics[0], ANSWER | {"category": "late"})))
    later.start()
    assert main(["watch", "--limit", "1"]) == 0
    later.join()
    out = capsys.readouterr().out
    assert "late" in out
    assert "early" not in out


def test_watch_without_its_topics_says_how_to_create_them(
    broker: str, unique: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FUNNELCAST_TRIGGERS", unique("none"))
    monkeypatch.setenv("FUNNELCAST_STAGE_PROBABILITIES", unique("no"))
    assert main(["watch", "--broker", broker]) == 2
    assert "create what is missing with `funnelcast topics`" in capsys.readouterr().err
