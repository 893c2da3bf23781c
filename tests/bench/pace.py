"""Sends clicks at a steady rate, stamped with the time of sending; a light process of its own.

The last line is one JSON object: how many were sent, between which times, and how late the latest one was.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np

from tests.bench.traffic import CATEGORIES, CLICK, ITEMS, KIND_SHARES, KINDS, PARTITIONS, producer

TICK_SECONDS, LINGER_MS = 0.002, 5  # as librdkafka and, from Kafka 4 on, the Java producer do by default
DRAWN = 100_000  # clicks that are drawn in advance and then sent again and again


def drawn(users: int, seed: int) -> list[tuple[int, bytes, int, int]]:
    """Return user, kind, item and category of some clicks, users as skewed as in the backlog."""
    rng = np.random.default_rng(seed)
    user = (users * rng.random(DRAWN) ** 2).astype(int).tolist()
    kind = [KINDS[number] for number in rng.choice(len(KINDS), DRAWN, p=KIND_SHARES)]
    item, category = (rng.integers(0, most, DRAWN).tolist() for most in (ITEMS, CATEGORIES))
    return list(zip(user, kind, item, category, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--broker", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--users", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True, help="events per second")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    to, source = producer(args.broker, LINGER_MS), drawn(args.users, args.seed)
    to.list_topics(args.topic, timeout=10)  # connects
    sent, latest, started = 0, 0.0, time.time()
    while (now := time.time()) - started < args.seconds:
        due = int((now - started) * args.rate)
        latest = max(latest, now - started - sent / args.rate)
        now_ms = int(now * 1000)
        for number in range(sent, due):
            user, kind, item, category = source[number % DRAWN]
            value = CLICK % (user, kind, now_ms, item, category)
            to.produce(args.topic, value, b"u%d" % user, user % PARTITIONS, timestamp=now_ms)
        sent = max(sent, due)
        to.poll(0)
        time.sleep(TICK_SECONDS)
    to.flush(10)
    print(json.dumps({"sent": sent, "from": started, "to": started + args.seconds, "late_ms": round(latest * 1000, 1)}))


if __name__ == "__main__":
    main()
