"""The topics of one application: settings in; topics created, checked, or one sentence about every one that differs.

All have the same number of partitions, because a user's events, table and answers share one.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import TopicAlreadyExistsError, UnknownTopicOrPartitionError, for_code

from model.contract.errors import FunnelcastError
from worker.broker import BrokerError, client_options, connected
from worker.settings import Settings, load_settings

TABLE = "user-sequences"
EVENT_BYTES = 16 * 1024 * 1024
ORIGINAL_BYTES = EVENT_BYTES + 64 * 1024  # an original record and the headers that explain it
COMPACTION_LAG_MS = 600_000  # the last ten minutes of the table stay readable, change by change
AT_LEAST = frozenset({"max.message.bytes"})
CHECKED = ("cleanup.policy", *AT_LEAST)


class TopicsError(FunnelcastError):
    """Topics that are missing or are not what the worker needs."""


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic: what is needed, or what was found."""

    name: str
    partitions: int
    configs: dict[str, str] = field(default_factory=dict)


def changelog(app_id: str) -> str:
    """Name the changelog topic of the table of user sequences."""
    return f"{app_id}-{TABLE}-changelog"


def needed(settings: Settings) -> list[Topic]:
    """List the topics that the worker reads and writes."""
    table = {
        "cleanup.policy": "compact",
        "min.compaction.lag.ms": str(COMPACTION_LAG_MS),
        "max.message.bytes": str(EVENT_BYTES),
    }
    originals = {"max.message.bytes": str(ORIGINAL_BYTES)}
    configs = {
        settings.clickstream: {"cleanup.policy": "delete", "max.message.bytes": str(EVENT_BYTES)},
        settings.stage_probabilities: {},
        settings.triggers: {},
        settings.dead_letters: originals,
        settings.late: originals,
        changelog(settings.app_id): table,
    }
    if settings.explain_one_in:
        configs[settings.explanations] = {}
    return [Topic(name, settings.partitions, config) for name, config in configs.items()]


def ensure_topics(settings: Settings) -> list[str]:
    """Create the topics that are missing, unless those that exist differ; return the names of those created."""
    wanted = needed(settings)
    with connected(KafkaAdminClient, settings.broker, **client_options(settings)) as admin:
        found = _describe(admin, wanted)
        _refuse(settings, [topic for topic in wanted if topic.name in found], found)
        missing = [topic for topic in wanted if topic.name not in found]
        for topic in missing:
            _create(admin, topic, settings.replication_factor)
        admin.wait_for_topics([topic.name for topic in missing])
        _refuse(settings, wanted, _describe(admin, wanted))
    return [topic.name for topic in missing]


def check_topics(settings: Settings) -> list[Topic]:
    """Raise one TopicsError about every topic that is missing or differs; return what was found."""
    wanted = needed(settings)
    with connected(KafkaAdminClient, settings.broker, **client_options(settings)) as admin:
        found = _describe(admin, wanted)
    _refuse(settings, wanted, found)
    return list(found.values())


def differences(wanted: list[Topic], found: dict[str, Topic]) -> list[str]:
    """Word whatever is missing or differs: the topics, what was found, what was expected, the remedy."""
    faults, others = [], defaultdict(list)
    for topic in wanted:
        others[found[topic.name].partitions if topic.name in found else None].append(topic.name)
    for count, names in others.items():
        if count is None:
            needs = _partitions(wanted[0].partitions)
            faults.append(f"{_topics(names)} not found, expected with {needs}: run `funnelcast topics`")
        elif count != wanted[0].partitions:
            faults.append(
                f"{_topics(names)} found with {_partitions(count)}, expected {wanted[0].partitions} as in all topics "
                f"of one application: set FUNNELCAST_PARTITIONS={count} if all have that, or delete and run "
                "`funnelcast topics`"
            )
    for topic in wanted:
        if topic.name in found:
            faults += _config_differences(topic, found[topic.name].configs)
    return faults


def _config_differences(wanted: Topic, configs: dict[str, str]) -> Iterator[str]:
    for name in CHECKED:
        has, needs = configs[name], wanted.configs.get(name)
        if needs is None or has == needs or (name in AT_LEAST and int(has) >= int(needs)):
            continue
        least = "at least " if name in AT_LEAST else ""
        yield (
            f"topic {wanted.name} has {name}={has}, expected {least}{needs}: alter it with kafka-configs, "
            "or delete the topic and run `funnelcast topics`"
        )


def _refuse(settings: Settings, wanted: list[Topic], found: dict[str, Topic]) -> None:
    if faults := differences(wanted, found):
        raise TopicsError(f"at {settings.broker}: {'; '.join(faults)}")


def _topics(names: list[str]) -> str:
    return f"topic{'s' if len(names) != 1 else ''} {', '.join(names)}"


def _partitions(count: int) -> str:
    return f"{count} partition{'s' if count != 1 else ''}"


def _describe(admin: Any, wanted: list[Topic]) -> dict[str, Topic]:
    """Read partitions and configuration of those topics that exist."""
    partitions = {}
    for topic in admin.describe_topics([topic.name for topic in wanted]):
        error = for_code(topic["error_code"])
        if topic["error_code"] == 0:
            partitions[topic["name"]] = len(topic["partitions"])
        elif error is not UnknownTopicOrPartitionError:
            raise error(topic["name"])
    if not partitions:
        return {}
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in partitions]
    configs = admin.describe_configs(resources, config_filter="all")["topic"]
    return {
        topic.name: Topic(
            topic.name, partitions[topic.name], {key: configs[topic.name][key]["value"] for key in CHECKED}
        )
        for topic in wanted
        if topic.name in partitions
    }


def _create(admin: Any, topic: Topic, replication_factor: int) -> None:
    description = {
        "num_partitions": topic.partitions,
        "replication_factor": replication_factor,
        "configs": topic.configs,
    }
    (answer,) = admin.create_topics({topic.name: description}, raise_errors=False)["topics"]
    error = for_code(answer["error_code"])
    if answer["error_code"] and error is not TopicAlreadyExistsError:  # made meanwhile: the check tells whether it fits
        raise BrokerError(
            f"the broker refused topic {topic.name} with {_partitions(topic.partitions)} and replication factor "
            f"{replication_factor} ({answer['error_message'] or error.__name__}); "
            "correct --partitions or --replication-factor"
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what may differ from the environment."""
    parser.add_argument("--broker", metavar="HOST:PORT", help="Kafka bootstrap servers, host:port (FUNNELCAST_BROKER)")
    parser.add_argument("--app-id", metavar="NAME", help="application whose table's topic is meant (FUNNELCAST_APP_ID)")
    parser.add_argument("--partitions", type=int, metavar="N", help="partitions of each topic (FUNNELCAST_PARTITIONS)")
    parser.add_argument(
        "--replication-factor", type=int, metavar="N", help="replicas of each topic (FUNNELCAST_REPLICATION_FACTOR)"
    )
    parser.add_argument("--check", action="store_true", help="only check, create nothing")


def run(arguments: argparse.Namespace) -> int:
    """Create what is missing, check everything, show it."""
    settings = load_settings(
        broker=arguments.broker,
        app_id=arguments.app_id,
        partitions=arguments.partitions,
        replication_factor=arguments.replication_factor,
    )
    created = [] if arguments.check else ensure_topics(settings)
    _print_table(check_topics(settings), created)
    return 0


def _print_table(found: list[Topic], created: list[str]) -> None:
    width = max(len(topic.name) for topic in found)
    print(f"{'topic':<{width}}  partitions  {'cleanup':<8}  {'largest record':>14}  state")
    for topic in found:
        cleanup, largest = topic.configs["cleanup.policy"], int(topic.configs["max.message.bytes"])
        state = "created" if topic.name in created else "ok"
        print(f"{topic.name:<{width}}  {topic.partitions:>10}  {cleanup:<8}  {largest:>14,}  {state}")
