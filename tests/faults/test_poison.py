"""Broken input on a real broker: one dead letter each, and the next valid event of the same chunk is served."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer

from model.contract.events import ClickEvent
from tests.support.stack import Stack, wire

NOW_MS = int(time.time() * 1000)
EVENT = ClickEvent(
    user_id="ada",
    event="product_view",
    timestamp=NOW_MS - 60_000,
    item_id="i1",
    category="c1",
    price=None,
    message_id=None,
)
VALID = wire(EVENT)
BROKEN: list[tuple[str, bytes | None, bytes | None]] = [
    ("invalid_utf8", b"ada", VALID.replace(b"i1", b"\xff\xfe")),
    ("invalid_json", b"ada", VALID[:-5]),
    ("invalid_json", b"ada", b""),
    ("not_an_object", b"ada", b"[1, 2]"),
    ("unknown_event", b"ada", VALID.replace(b"product_view", b"teleport")),
    ("missing_user", b"ada", VALID.replace(b'"user_id": "ada", ', b"")),
    ("out_of_range", b"ada", VALID.replace(str(EVENT.timestamp).encode(), b"9223372036854775808")),
    ("out_of_range", b"ada", VALID.replace(str(EVENT.timestamp).encode(), b"-1")),
    ("invalid_json", b"ada", VALID.replace(str(EVENT.timestamp).encode(), b"NaN")),
    ("too_large", b"ada", b'{"user_id":"ada","note":"' + b"x" * (5 << 20) + b'"}'),
    ("null_key", None, VALID),
    ("key_mismatch", b"bob", VALID),
    ("tombstone", b"ada", None),
    ("future", b"ada", VALID.replace(str(EVENT.timestamp).encode(), str(NOW_MS + 86_400_000).encode())),
    ("invalid_json", b"ada", b'{"a":' * 100_000),
]


@pytest.fixture
def stack(broker: str, unique: Callable[[str], str], tmp_path: Path) -> Iterator[Stack]:
    stack = Stack(broker, unique, tmp_path, partitions=1)
    yield stack
    stack.close()


def test_each_broken_record_is_one_dead_letter_and_its_neighbours_are_served(stack: Stack) -> None:
    producer = stack.producer(max_request_size=16 << 20)
    for _, key, value in BROKEN:
        producer.send(stack.topics["clickstream"], key=key, value=value, partition=0)
        producer.send(stack.topics["clickstream"], key=b"ada", value=VALID, partition=0)
    producer.flush()
    producer.close()
    stack.start("a")
    stack.wait_answered()
    letters = sorted(stack.read(stack.topics["dead_letters"]), key=lambda letter: int(letter.headers["source_offset"]))
    assert [letter.headers["reason"] for letter in letters] == [reason for reason, _, _ in BROKEN]
    assert [(letter.key, letter.value or None) for letter in letters] == [
        (key, value or None) for _, key, value in BROKEN
    ]
    assert [int(letter.headers["source_offset"]) for letter in letters] == list(range(0, 2 * len(BROKEN), 2))
    assert {(letter.headers["source_topic"], letter.headers["source_partition"]) for letter in letters} == {
        (stack.topics["clickstream"], "0")
    }
    stack.verify()
    assert len(stack.read(stack.topics["stage_probabilities"])) == len(BROKEN)


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_every_codec_of_kafka_is_read(stack: Stack, codec: str) -> None:

    from aiokafka.codec import gzip_encode, lz4_encode, snappy_encode, zstd_encode  # noqa: F401  (the worker's decoders are there)

    async def produce() -> None:
        producer = AIOKafkaProducer(bootstrap_servers=stack.broker, compression_type=codec, linger_ms=20)
        await producer.start()
        for number in range(200):
            await producer.send(
                stack.topics["clickstream"], key=b"ada", value=VALID.replace(b"i1", b"i%d" % number), partition=0
            )
        await producer.stop()

    asyncio.run(produce())
    stack.start("a")
    stack.wait_answered()
    assert len(stack.read(stack.topics["stage_probabilities"])) == 200


def test_late_events_and_duplicates_change_nothing_and_are_told_apart(stack: Stack) -> None:
    minute = 60_000
    times = [0, 10 * minute, 8 * minute, 10 * minute - 30_000, 11 * minute]
    events = [
        ClickEvent(
            user_id="ada",
            event="product_view",
            timestamp=NOW_MS - 3_600_000 + ms,
            item_id="i",
            category="c",
            price=1.0,
            message_id=f"m{i}",
        )
        for i, ms in enumerate(times)
    ]
    stack.produce([*events, events[1], events[4]])
    stack.start("a")
    stack.wait_answered()
    expected = stack.verify()
    assert (len(expected.late), expected.duplicates, sum(expected.answered.values())) == (1, 2, 4)
