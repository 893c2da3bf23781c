"""The job in Bytewax: stateful_map between Kafka source and sink; state in memory, a snapshot in SQLite every 5 s."""

import bytewax.operators as op
import job
from bytewax.connectors.kafka import KafkaSinkMessage, KafkaSourceMessage
from bytewax.connectors.kafka import operators as kafka
from bytewax.dataflow import Dataflow


def decoded(messages: list[KafkaSourceMessage]) -> list[tuple[str, dict]]:
    return [(message.key.decode(), job.decode(message.value)) for message in messages]


def to_send(answers: list[tuple[str, bytes]]) -> list[KafkaSinkMessage]:
    return [KafkaSinkMessage(user.encode(), answer) for user, answer in answers]


flow = Dataflow("peer")
source = kafka.input(
    "clicks",
    flow,
    brokers=[job.BROKER],
    topics=[job.CLICKS],
    batch_size=2000,
    add_config={"fetch.max.bytes": str(8 << 20), "queued.min.messages": "200000"},
)
clicks = op.flat_map_batch("decode", source.oks, decoded)
answers = op.stateful_map("state", clicks, job.step)
encoded = op.flat_map_batch("encode", answers, to_send)
kafka.output("answers", encoded, brokers=[job.BROKER], topic=job.ANSWERS, add_config={"linger.ms": "5"})
