"""`funnelcast watch`: stage probabilities and triggers from their topics in, readable lines or JSON lines out.

Reads committed records only: what an interrupted worker left unfinished is never shown.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec
from kafka import KafkaConsumer, TopicPartition
from rich.console import Console
from rich.text import Text

from model.contract.stages import STAGES
from worker.broker import client_options, connected, require_topics
from worker.settings import load_settings

POLL_MS = 500
ID_ENDS = (3, 2)  # characters of a user id that are shown
LOW, HIGH = 30, 70  # percent: below is dim, above is bold
WIDE = 108  # columns that hold the probabilities of both scopes
SHORT = ("awa", "int", "con", "ent", "pur", "loy")  # ent: intent
STAGE_STYLE = dict(zip(STAGES, ("blue", "cyan", "green", "yellow", "magenta", "red"), strict=True))


def header(wide: bool) -> Text:
    """Return the line above the columns that `line` fills."""
    names = "".join(f"{name:>4}" for name in SHORT)
    scopes = f"{names}    {names}  anywhere, %" if wide else names
    left = f"{'event time':<11} {'user':<7} {'event':<12} {'category':<8} {'stage':<13}"
    return Text(f"{left}{scopes}", style="bold underline")


def line(record: Mapping[str, Any], *, full_ids: bool = False, wide: bool = False) -> Text:
    """Word one stage-probability or trigger record; chances to reach each stage, in its category, in percent."""
    user = record["user_id"] if full_ids else shortened(record["user_id"])
    moment = datetime.fromtimestamp(record["event_time"] / 1000, UTC).strftime("%m-%d %H:%M")
    text = Text(f"{moment} {user:<7} ")
    return _trigger(text, record) if "campaign" in record else _stage(text, record, wide)


def shortened(user_id: str) -> str:
    """Show the ends of a user id; a screen or a log is no place for whole ones."""
    first, last = ID_ENDS
    return user_id if len(user_id) <= first + last + 1 else f"{user_id[:first]}…{user_id[-last:]}"


def _trigger(text: Text, record: Mapping[str, Any]) -> Text:
    where = "here" if record["scope"] == "category" else "anywhere"
    text.append(f"▶ {record['campaign']}", style="bold reverse")
    return text.append(
        f" {record['stage']} {where} {record['probability']:.2f}, {record['rule']} {record['threshold']:g}"
    )


def _stage(text: Text, record: Mapping[str, Any], wide: bool) -> Text:
    stage = record["stage"]
    text.append(f"{_cut(record['event_type'], 12)} {_cut(record['category'] or '-', 8)} ")
    text.append(f"{stage:<13}", style=STAGE_STYLE[stage])
    _percentages(text, record["category_probabilities"])
    if wide:
        text.append("    ")
        _percentages(text, record["user_probabilities"])
    if record["degraded"]:
        text.append("  degraded", style="bold red")
    return text


def _percentages(text: Text, probabilities: Mapping[str, float]) -> None:
    for stage in STAGES:
        if stage not in probabilities:  # a worker without a model
            text.append("   -", style="dim")
            continue
        percent = round(100 * probabilities[stage])
        text.append(f"{percent:>4}", style="dim" if percent < LOW else "bold" if percent > HIGH else "")


def _cut(text: str, width: int) -> str:
    return f"{text:<{width}}" if len(text) <= width else f"{text[: width - 1]}…"


def committed(consumer: Any, topics: list[str], from_beginning: bool) -> Iterator[Any]:
    """Yield the records of the topics for ever, from their beginning or from now on."""
    partitions = [TopicPartition(topic, number) for topic in topics for number in consumer.partitions_for_topic(topic)]
    consumer.assign(partitions)
    (consumer.seek_to_beginning if from_beginning else consumer.seek_to_end)(*partitions)
    for partition in partitions:
        consumer.position(partition)  # settles where "now" is
    while True:
        for records in consumer.poll(timeout_ms=POLL_MS).values():
            yield from records


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare where to read and how to show it."""
    parser.add_argument(
        "--json", action="store_true", help="one JSON object per record: topic, partition, offset, value"
    )
    parser.add_argument(
        "--from-beginning", action="store_true", help="start with the oldest record (default: from now on)"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="end after N records (default: with Ctrl-C)")
    parser.add_argument("--full-ids", action="store_true", help="show whole user ids")
    parser.add_argument("--broker", metavar="HOST:PORT", help="Kafka bootstrap servers (FUNNELCAST_BROKER)")


def run(args: argparse.Namespace) -> int:
    """Show records until the limit."""
    settings = load_settings(broker=args.broker)
    topics = [settings.stage_probabilities, settings.triggers]
    security = client_options(settings)
    require_topics(settings.broker, topics, **security)
    console = Console(highlight=False, soft_wrap=True)
    wide = console.width >= WIDE
    options = {"isolation_level": "read_committed", "group_id": None, "enable_auto_commit": False}
    with connected(KafkaConsumer, settings.broker, **options, **security) as consumer:
        if not args.json:
            console.print(header(wide))
        for shown, record in enumerate(committed(consumer, topics, args.from_beginning), 1):
            if args.json:
                print(_json_line(record), flush=True)
            else:
                console.print(line(msgspec.json.decode(record.value), full_ids=args.full_ids, wide=wide))
            if shown == args.limit:
                break
    return 0


def _json_line(record: Any) -> str:
    place = {"topic": record.topic, "partition": record.partition, "offset": record.offset}
    return msgspec.json.encode({**place, "value": msgspec.Raw(record.value)}).decode()
