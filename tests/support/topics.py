"""Topics made by hand, as those of another program are."""

from __future__ import annotations

from kafka import KafkaAdminClient


def create_topics(broker: str, *names: str, partitions: int = 2, replicas: int = 1, **configs: str) -> None:
    description = {"num_partitions": partitions, "replication_factor": replicas, "configs": configs}
    admin = KafkaAdminClient(bootstrap_servers=broker.split(","))
    admin.create_topics(dict.fromkeys(names, description), wait_for_metadata=True)
    admin.close()
