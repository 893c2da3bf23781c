"""Notes when each answer was seen, in batches as they come; a light process of its own, ended by SIGTERM.

Writes OUT.ready when it is at the topic's end, and OUT (npz) when it ends: place (partition and offset in one number),
arrival (ms, the producer's time of the click, as the answer carries it) and seen (ms).
"""

from __future__ import annotations

import argparse
import signal
import time
from array import array
from pathlib import Path

import numpy as np
from confluent_kafka import Consumer, Message, TopicPartition

from tests.bench.traffic import PARTITIONS, QUIET

BATCH, MS_DIGITS, PARTITION_BITS = 5000, 13, 40


class Reader:
    """A consumer at the end of a topic."""

    def __init__(self, broker: str, topic: str, isolation: str, field: str) -> None:
        self._consumer = Consumer({
            "bootstrap.servers": broker, "group.id": f"reader-{isolation}", "isolation.level": isolation,
            "enable.auto.commit": False, "fetch.queue.backoff.ms": 10, **QUIET,
        })  # fmt: skip
        places = [TopicPartition(topic, number) for number in range(PARTITIONS)]
        for place in places:
            place.offset = self._consumer.get_watermark_offsets(place, timeout=10)[1]
        self._consumer.assign(places)
        self._field = b'"%b":' % field.encode()
        self.place, self.arrival, self.seen = array("q"), array("q"), array("d")

    def read(self) -> None:
        """Wait for a batch of answers and note it; answers to no click are left out."""
        first = self._consumer.poll(0.1)
        if first is None:
            return
        batch: list[Message] = [first, *self._consumer.consume(BATCH, 0)]
        now_ms = time.time() * 1000
        for message in batch:
            value = message.value()
            if message.error() is not None or value is None:
                continue
            at = value.find(self._field) + len(self._field)
            arrival = value[at : at + MS_DIGITS]
            if arrival.isdigit():  # a session's end has none
                self.place.append(message.partition() << PARTITION_BITS | message.offset())
                self.arrival.append(int(arrival))
                self.seen.append(now_ms)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--broker", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--isolation", required=True)
    parser.add_argument("--field", required=True, help="of an answer, the producer's time of its click")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: ended.append(number))
    reader = Reader(args.broker, args.topic, args.isolation, args.field)
    args.out.with_suffix(".ready").touch()
    while not ended:
        reader.read()
    np.savez(args.out, place=reader.place, arrival=reader.arrival, seen=reader.seen)


if __name__ == "__main__":
    main()
