"""`funnelcast replay`: an event log in, its events in event-time order out to the clickstream, at a rate or a speed-up.

Message ids are functions of log and row, so that a log sent twice is recognised where its events are still remembered.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from kafka import KafkaProducer
from tqdm import tqdm

from model.contract.errors import FunnelcastError
from model.contract.events import ClickEvent
from worker.broker import BrokerError, client_options, connected, require_topics
from worker.settings import load_settings

LOADERS = "model.datasets"  # imported when asked for: the worker itself knows the contract only
EXIT_INTERRUPTED = 130
FLUSH_EVERY = 20_000  # events; the client bounds no memory of its own
FLUSH_SECONDS = 60.0
PRODUCER = {
    "acks": "all",
    "enable_idempotence": True,
    "linger_ms": 5,
    "batch_size": 1 << 18,
    "max_block_ms": 10_000,
    "delivery_timeout_ms": 30_000,
    "request_timeout_ms": 10_000,
}


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast to send: events per second, event seconds per second, or, with neither, as fast as possible."""

    rate: float | None = None
    speed_up: float | None = None


def prepare(
    rows: Iterable[tuple[int, ClickEvent]], stem: str, users: int | None, limit: int | None
) -> list[ClickEvent]:
    """Order a log by event time, keep the first users met and the first events, give ids to events without one."""
    kept: set[str] = set()
    chosen = []
    for row, event in rows:
        if event.user_id not in kept:
            if users is not None and len(kept) >= users:
                continue
            kept.add(event.user_id)
        event.message_id = event.message_id or f"{stem}-{row}"
        chosen.append(event)
    chosen.sort(key=lambda event: event.timestamp)  # stable: rows of one time keep their order
    return chosen[:limit]


def schedule(events: list[ClickEvent], pace: Pace) -> Iterator[float]:
    """Yield when each event is due, in seconds after the start."""
    for number, event in enumerate(events):
        if pace.rate is not None:
            yield number / pace.rate
        elif pace.speed_up is not None:
            yield (event.timestamp - events[0].timestamp) / 1000 / pace.speed_up
        else:
            yield 0.0


def send(events: list[ClickEvent], producer: Any, topic: str, pace: Pace) -> int:
    """Send the events when they are due; return how many were acknowledged before the end or Ctrl-C."""
    failures: list[BaseException] = []
    sent, start = 0, time.monotonic()
    bar = tqdm(total=len(events), desc="replay", unit=" events", disable=None)
    try:
        with bar:
            for event, due in zip(events, schedule(events, pace), strict=True):
                if (wait := start + due - time.monotonic()) > 0:
                    time.sleep(wait)
                future = producer.send(topic, key=event.user_id.encode(), value=msgspec.json.encode(event))
                future.add_errback(failures.append)
                sent += 1
                bar.update()
                if sent % FLUSH_EVERY == 0:
                    producer.flush(FLUSH_SECONDS)
    except KeyboardInterrupt:
        pass  # what was sent is flushed and counted; the caller sees that it is not all
    producer.flush(FLUSH_SECONDS)
    if failures:
        raise BrokerError(
            f"{len(failures)} of {sent} events were not taken by topic {topic} (first: {failures[0]}); "
            "look into the broker's log, then send the log again"
        )
    return sent


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the log, the pace and the target."""
    importlib.import_module(LOADERS).add_log_arguments(parser)
    pace = parser.add_mutually_exclusive_group()
    pace.add_argument("--rate", type=_positive, metavar="N", help="events per second")
    pace.add_argument("--speed-up", type=_positive, metavar="X", help="event time runs X times as fast as the clock")
    pace.add_argument("--max", action="store_true", help="as fast as the broker takes them (the default)")
    parser.add_argument("--users", type=_count, metavar="N", help="only the first N users of the log")
    parser.add_argument("--limit", type=_count, metavar="N", help="only the first N events in event-time order")
    parser.add_argument("--broker", metavar="HOST:PORT", help="Kafka bootstrap servers (FUNNELCAST_BROKER)")
    parser.add_argument("--topic", help="topic to send to (FUNNELCAST_CLICKSTREAM)")


def run(args: argparse.Namespace) -> int:
    """Replay; return 0, or 130 after Ctrl-C."""
    settings = load_settings(broker=args.broker, clickstream=args.topic)
    security = client_options(settings)
    require_topics(settings.broker, [settings.clickstream], **security)
    events = _read(args)
    start = time.monotonic()
    with connected(KafkaProducer, settings.broker, **PRODUCER, **security) as producer:
        sent = send(events, producer, settings.clickstream, Pace(args.rate, args.speed_up))
    print(summary(events, sent, time.monotonic() - start, settings.clickstream))
    return 0 if sent == len(events) else EXIT_INTERRUPTED


def summary(events: list[ClickEvent], sent: int, seconds: float, topic: str) -> str:
    """Say in one sentence what was sent."""
    gone = events[:sent]
    if not gone:
        return f"interrupted before the first of {len(events):,} events"
    users = len({event.user_id for event in gone})
    share = f"{sent:,}" if sent == len(events) else f"interrupted: {sent:,} of {len(events):,}"
    return (
        f"{share} events of {users:,} users sent to {topic} in {seconds:.1f} s ({sent / seconds:,.0f} events/s), "
        f"event time {_utc(gone[0].timestamp)} to {_utc(gone[-1].timestamp)} UTC"
    )


def _read(args: argparse.Namespace) -> list[ClickEvent]:
    log = importlib.import_module(LOADERS).log_from_args(args)
    events = prepare(log, _stem(args.log), args.users, args.limit)
    print(log.summary(), *log.problems.lines(), sep="\n", file=sys.stderr)
    if not events:
        raise FunnelcastError(f"{args.log} gave no event, expected at least one; check --format and the columns")
    return events


def _stem(path: Path) -> str:
    return path.resolve().name.partition(".")[0]


def _utc(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value
