"""The job in Quix Streams: stateful apply, RocksDB, changelog, at least once, a commit every 5 s (its default)."""

import job
from quixstreams import Application, State

app = Application(
    broker_address=job.BROKER,
    consumer_group=job.APP,
    auto_offset_reset="earliest",
    loglevel="WARNING",
    state_dir=job.STATE,
    consumer_extra_config={"queued.min.messages": 200_000},
    producer_extra_config={"linger.ms": 5, "queue.buffering.max.messages": 500_000},
)
clicks = app.topic(job.CLICKS, value_deserializer="bytes", key_deserializer="bytes")
answers = app.topic(job.ANSWERS, value_serializer="bytes", key_serializer="bytes")


def answer(value: bytes, state: State) -> bytes:
    after, said = job.step(state.get_bytes("s"), job.decode(value))
    state.set_bytes("s", after)
    return said


app.dataframe(clicks).apply(answer, stateful=True).to_topic(answers)
app.run()
