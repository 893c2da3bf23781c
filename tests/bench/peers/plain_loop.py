"""The job as a plain confluent-kafka loop with a dict: nothing is durable, a restart loses every user's state."""

import job
from confluent_kafka import Consumer, Producer

consumer = Consumer({
    "bootstrap.servers": job.BROKER, "group.id": job.APP, "auto.offset.reset": "earliest",
    "fetch.max.bytes": 8 << 20, "queued.min.messages": 200_000,
})  # fmt: skip
producer = Producer({
    "bootstrap.servers": job.BROKER, "linger.ms": 5, "batch.size": 256 << 10, "queue.buffering.max.messages": 500_000,
})  # fmt: skip
consumer.subscribe([job.CLICKS])
state: dict[bytes, bytes] = {}
while True:
    for message in consumer.consume(2000, 0.01):
        if message.error() is not None:
            continue
        key = message.key()
        state[key], answer = job.step(state.get(key), job.decode(message.value()))
        while True:
            try:
                producer.produce(job.ANSWERS, key=key, value=answer)
                break
            except BufferError:
                producer.poll(0.02)
    producer.poll(0)
