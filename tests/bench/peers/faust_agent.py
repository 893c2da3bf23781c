"""The job in stock Faust: `async for`, one table write and one send per event; RocksDB, changelog, at least once."""

import faust
import job

PARTITIONS = 4

app = faust.App(
    job.APP,
    broker=f"kafka://{job.BROKER}",
    store="rocksdb://",
    datadir=job.STATE,
    topic_partitions=PARTITIONS,
    topic_replication_factor=1,
    web_enabled=False,
    autodiscover=False,
    consumer_auto_offset_reset="earliest",
)
clicks = app.topic(job.CLICKS, key_type=bytes, key_serializer="raw", value_serializer="json")
answers = app.topic(
    job.ANSWERS, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw", partitions=PARTITIONS
)
table = app.Table("state", partitions=PARTITIONS, key_type=bytes, value_type=bytes)
for place in (table, table.changelog_topic):
    place.key_serializer = place.value_serializer = "raw"


@app.agent(clicks)
async def serve(stream: faust.StreamT[dict[str, object]]) -> None:
    async for click in stream:
        key = str(click["user_id"]).encode()
        table[key], answer = job.step(table.get(key), click)
        await answers.send(key=key, value=answer)


if __name__ == "__main__":
    faust.Worker(app, loglevel="WARN").execute_from_commandline()
