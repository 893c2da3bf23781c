"""The same stateful job in stock Faust: `async for`, one table write and one send per event.

The table is RocksDB with a changelog. Lighter than ours: the last 64 rows and eight counts per user,
no sessions, no order, no features, at least once.
"""

from __future__ import annotations

import os
import struct

import faust
import msgspec

CODES = {"product_view": 0, "cart_add": 1, "order": 2, "search": 3, "wishlist_add": 4}
HEAD, ROW, ROWS = struct.Struct("<9I"), struct.Struct("<BIq"), 64
EMPTY = bytes(HEAD.size + ROWS * ROW.size)
encode = msgspec.json.Encoder().encode

app = faust.App(
    os.environ["BENCH_APP"],
    broker=f"kafka://{os.environ['BENCH_BROKER']}",
    store="rocksdb://",
    datadir=os.environ["BENCH_STATE"],
    topic_partitions=4,
    topic_replication_factor=1,
    web_enabled=False,
    autodiscover=False,
    consumer_auto_offset_reset="earliest",
)
clicks = app.topic(os.environ["BENCH_IN"], key_type=bytes, key_serializer="raw", value_serializer="json")
answers = app.topic(
    os.environ["BENCH_OUT"],
    key_type=bytes,
    value_type=bytes,
    key_serializer="raw",
    value_serializer="raw",
    partitions=4,
)
table = app.Table("state", partitions=4, key_type=bytes, value_type=bytes)
for place in (table, table.changelog_topic):
    place.key_serializer = place.value_serializer = "raw"


def step(state: bytes | None, event: dict[str, object]) -> tuple[bytes, bytes]:
    """Return the user's next state and the answer to one event."""
    row = bytearray(state or EMPTY)
    counts = list(HEAD.unpack_from(row))
    code = CODES.get(str(event["event"]), 7)
    item = hash(event["item_id"]) & 0xFFFFFFFF
    ROW.pack_into(row, HEAD.size + (counts[0] % ROWS) * ROW.size, code, item, event["timestamp"])
    counts[0] += 1
    counts[code + 1] += 1
    HEAD.pack_into(row, 0, *counts)
    answer = {"user_id": event["user_id"], "event_time": event["timestamp"], "events": counts[0], "counts": counts[1:]}
    return bytes(row), encode(answer)


@app.agent(clicks)
async def serve(stream: faust.StreamT[dict[str, object]]) -> None:
    async for event in stream:
        key = str(event["user_id"]).encode()
        table[key], answer = step(table.get(key), event)
        await answers.send(key=key, value=answer)


if __name__ == "__main__":
    faust.Worker(app, loglevel="WARN").execute_from_commandline()
