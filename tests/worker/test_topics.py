from collections.abc import Callable
from time import monotonic

import pytest
from kafka import KafkaAdminClient

from tests.support.topics import create_topics
from worker.broker import BrokerError
from worker.settings import Settings, load_settings
from worker.topics import Topic, TopicsError, changelog, check_topics, differences, ensure_topics, needed


@pytest.fixture
def settings(broker: str, unique: Callable[[str], str]) -> Settings:
    topics = ("clickstream", "stage_probabilities", "triggers", "dead_letters", "late")
    return load_settings(
        broker=broker,
        app_id=unique("app"),
        partitions=3,
        replication_factor=1,
        **{name: unique(name) for name in topics},
    )


def existing(broker: str, settings: Settings) -> set[str]:
    admin = KafkaAdminClient(bootstrap_servers=broker)
    names = set(admin.list_topics()) & {topic.name for topic in needed(settings)}
    admin.close()
    return names


def test_topics_are_created_once_with_one_partition_count_and_a_compacted_changelog(settings: Settings) -> None:
    names = [topic.name for topic in needed(settings)]
    assert ensure_topics(settings) == names
    assert ensure_topics(settings) == []
    found = {topic.name: topic for topic in check_topics(settings)}
    assert list(found) == names
    assert {topic.partitions for topic in found.values()} == {3}
    policies = {name: topic.configs["cleanup.policy"] for name, topic in found.items()}
    assert policies.pop(changelog(settings.app_id)) == "compact"
    assert set(policies.values()) == {"delete"}


def test_a_topic_of_explanations_is_needed_only_where_some_are_wanted() -> None:
    every, none = (load_settings(explain_one_in=one_in) for one_in in (100, 0))
    assert [topic.name for topic in needed(every)] == [*(topic.name for topic in needed(none)), "funnel.explanations"]


def test_a_dead_letter_may_be_larger_than_the_largest_click(settings: Settings) -> None:
    largest = {topic.name: int(topic.configs.get("max.message.bytes", 0)) for topic in needed(settings)}
    assert largest[settings.clickstream] == 16 * 1024 * 1024
    assert largest[settings.dead_letters] == largest[settings.late] > largest[settings.clickstream]


def test_a_check_names_what_is_missing_and_creates_nothing(broker: str, settings: Settings) -> None:
    with pytest.raises(TopicsError) as refusal:
        check_topics(settings)
    assert settings.clickstream in str(refusal.value)
    assert "not found, expected with 3 partitions: run `funnelcast topics`" in str(refusal.value)
    assert not existing(broker, settings)


def test_another_partition_count_is_refused_before_anything_is_created(broker: str, settings: Settings) -> None:
    create_topics(broker, settings.clickstream, partitions=2)
    with pytest.raises(TopicsError) as refusal:
        ensure_topics(settings)
    message = str(refusal.value)
    assert f"topic {settings.clickstream} found with 2 partitions, expected 3" in message
    assert "set FUNNELCAST_PARTITIONS=2" in message
    assert "\n" not in message
    assert existing(broker, settings) == {settings.clickstream}


def test_a_changelog_that_is_not_compacted_is_refused(broker: str, settings: Settings) -> None:
    create_topics(broker, changelog(settings.app_id), partitions=3, **{"max.message.bytes": str(1 << 24)})
    with pytest.raises(
        TopicsError, match=r"changelog has cleanup.policy=delete, expected compact: alter it"
    ) as refusal:
        ensure_topics(settings)
    assert "max.message.bytes" not in str(refusal.value)


def test_a_topic_that_takes_larger_records_than_needed_is_fine() -> None:
    wanted = Topic("clicks", 1, {"max.message.bytes": "1000"})
    large = Topic("clicks", 1, {"cleanup.policy": "compact", "max.message.bytes": "2000"})
    small = Topic("clicks", 1, {"cleanup.policy": "compact", "max.message.bytes": "999"})
    assert differences([wanted], {"clicks": large}) == []
    assert "has max.message.bytes=999, expected at least 1000" in differences([wanted], {"clicks": small})[0]


def test_topics_that_differ_alike_share_one_sentence() -> None:
    wanted = [Topic("a", 4), Topic("b", 4), Topic("c", 4)]
    configs = {"cleanup.policy": "delete", "max.message.bytes": "1"}
    (fault,) = differences(wanted, {name: Topic(name, 1, configs) for name in "abc"})
    assert fault.startswith("topics a, b, c found with 1 partition, expected 4")


def test_more_replicas_than_brokers_are_refused_with_the_brokers_reason(settings: Settings) -> None:
    with pytest.raises(BrokerError, match=r"replication factor 7 \(.*broker\(s\) are registered.*\); correct"):
        ensure_topics(settings.model_copy(update={"replication_factor": 7}))


def test_a_broker_that_does_not_answer_is_named_within_six_seconds() -> None:
    start = monotonic()
    with pytest.raises(BrokerError, match=r"^no Kafka broker answers at 127.0.0.1:1; start it, or name another one"):
        check_topics(load_settings(broker="127.0.0.1:1"))
    assert monotonic() - start < 6
