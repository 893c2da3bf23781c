"""The pager's dashboard: is it healthy, what is slow, what is lost."""

from __future__ import annotations

from boards.panels import JOB, Panel, Row, number, quantile, rate

PAGER = [
    Row(
        "Is it healthy?",
        [
            number("Workers up", "Workers that answer their scrape.", "short", f"sum(up{JOB})"),
            number(
                "Workers ready",
                "Workers with partitions, a recovered table, a bundle and a broker that answers.",
                "short",
                f"sum(funnelcast_ready{JOB})",
            ),
            number(
                "Alerts firing",
                "Alerts of Funnelcast that fire now; their runbook section says what to do.",
                "short",
                'count(ALERTS{alertstate="firing", alertname=~"Funnelcast.*"}) or vector(0)',
                1,
            ),
            number("Clicks", "Clicks taken from Kafka per second.", "reqps", rate("funnelcast_records_consumed_total")),
            number(
                "Latency, p99",
                "Arrival in Kafka to the commit of the answer, over 5 minutes; the target is 100 ms.",
                "s",
                f"max(job:funnelcast_end_to_end_seconds:p99_5m{JOB})",
                0.1,
            ),
            number(
                "Clicks waiting",
                "Consumer lag: end of the click topic less the committed offsets.",
                "short",
                f"sum(job:funnelcast_consumer_lag_messages:sum{JOB})",
                1000,
            ),
            Panel(
                "Conditions of readiness",
                "Workers for which the condition holds. One is ready when all four do; what falls first is the cause.",
                "short",
                [(f"sum by (condition) (funnelcast_condition{JOB})", "{{condition}}")],
            ),
            Panel(
                "Partitions by worker",
                "Source partitions that each worker owns. Uneven for long: a worker is missing or a rebalance hangs.",
                "short",
                [(f"count by (instance) (funnelcast_consumer_lag_messages{JOB})", "{{instance}}")],
                "stack",
            ),
            Panel(
                "Rebalances and restarts",
                "Assignments of partitions and process starts within the last hour.",
                "short",
                [
                    (
                        f"sum by (instance) (increase(funnelcast_partition_assignments_total{JOB}[1h]))",
                        "{{instance}} assignments",
                    ),
                    (f"changes(process_start_time_seconds{JOB}[1h])", "{{instance}} restarts"),
                ],
            ),
            Panel(
                "Silence",
                "The longest of any worker: since a broker answered its probe (10 s: not ready), since its event loop "
                "turned (30 s: not live).",
                "s",
                [
                    (f"max(funnelcast_broker_silent_seconds{JOB})", "broker"),
                    (f"max(funnelcast_event_loop_silent_seconds{JOB})", "event loop"),
                ],
            ),
            Panel(
                "Recovery",
                "Changelog messages still to be read back after a start; falls to 0, then the partitions are served.",
                "short",
                [(f"funnelcast_recovery_remaining_messages{JOB}", "{{instance}}")],
            ),
            Panel(
                "Memory",
                "Resident memory of each worker; flat over hours.",
                "bytes",
                [(f"process_resident_memory_bytes{JOB}", "{{instance}}")],
            ),
        ],
    ),
    Row(
        "What is slow?",
        [
            Panel(
                "End-to-end latency",
                "Arrival of a click in Kafka to the commit of its answer; targets: p50 40 ms, p99 100 ms.",
                "s",
                [
                    (f"max(job:funnelcast_end_to_end_seconds:p50_5m{JOB})", "p50"),
                    (f"max(job:funnelcast_end_to_end_seconds:p99_5m{JOB})", "p99"),
                ],
            ),
            Panel(
                "Where the time goes, p99",
                "Wait for the micro-batch, the network, and the whole transaction: both of them and Kafka's part.",
                "s",
                [
                    (quantile(0.99, "funnelcast_batch_wait_seconds"), "batch wait"),
                    (quantile(0.99, "funnelcast_inference_seconds"), "network"),
                    (quantile(0.99, "funnelcast_transaction_seconds"), "transaction"),
                ],
            ),
            Panel(
                "Age of the oldest click",
                "How long the oldest click without an answer has waited, by partition.",
                "s",
                [
                    (f"max by (partition) (funnelcast_consumer_lag_seconds{JOB})", "partition {{partition}}"),
                    (f"max(job:funnelcast_consumer_lag_seconds:max{JOB})", "oldest"),
                ],
            ),
            Panel(
                "Clicks waiting, by partition",
                "Consumer lag in messages. One partition alone: a user who sends thousands of clicks.",
                "short",
                [(f"sum by (partition) (funnelcast_consumer_lag_messages{JOB})", "partition {{partition}}")],
            ),
            Panel(
                "Queues",
                "Chunks that wait for their transaction, users that wait for the network.",
                "short",
                [
                    (f"sum(funnelcast_queue_depth_chunks{JOB})", "chunks"),
                    (f"sum(funnelcast_batch_waiting_users{JOB})", "users"),
                ],
            ),
            Panel(
                "Micro-batch",
                "Users in one run of the network: small ones mean little traffic, full ones that it is the bottleneck.",
                "short",
                [(quantile(0.5, "funnelcast_batch_users"), "p50"), (quantile(0.99, "funnelcast_batch_users"), "p99")],
            ),
            Panel(
                "Transactions",
                "Committed per second, by worker.",
                "ops",
                [(rate("funnelcast_transactions_committed_total", "instance"), "{{instance}}")],
            ),
            Panel(
                "Oldest open transaction",
                "Kafka aborts a transaction at 30 s, which ends the worker.",
                "s",
                [(f"max by (partition) (funnelcast_transaction_age_seconds{JOB})", "partition {{partition}}")],
            ),
            Panel(
                "CPU",
                "Cores that each worker uses.",
                "short",
                [(f"rate(process_cpu_seconds_total{JOB}[$__rate_interval])", "{{instance}}")],
            ),
        ],
    ),
    Row(
        "What is lost?",
        [
            Panel(
                "Dead letters by reason",
                "Clicks per second that cannot be read; they lie in the dead-letter topic.",
                "reqps",
                [(rate("funnelcast_records_rejected_total", "reason"), "{{reason}}")],
                "stack",
            ),
            Panel(
                "Late and duplicate events",
                "Events per second that are too old for their user's sequence, or were seen before.",
                "reqps",
                [
                    (rate("funnelcast_events_late_total"), "late"),
                    (rate("funnelcast_events_duplicate_total"), "duplicate"),
                ],
            ),
            Panel(
                "Shares",
                "Of the clicks: dead letters and late ones; of the answers: degraded ones. Over 5 minutes.",
                "percentunit",
                [
                    (f"job:funnelcast_records_rejected:ratio5m{JOB}", "dead letters"),
                    (f"job:funnelcast_events_late:ratio5m{JOB}", "late"),
                    (f"job:funnelcast_stage_probabilities_degraded:ratio5m{JOB}", "degraded"),
                ],
            ),
            Panel(
                "Failed runs of the network",
                "Each is split and tried again; what fails alone is answered with the base rate.",
                "ops",
                [(rate("funnelcast_inference_failures_total", "instance"), "{{instance}}")],
            ),
            Panel(
                "Users in memory",
                "Users whose sequences each worker holds.",
                "short",
                [(f"sum by (instance) (funnelcast_table_users{JOB})", "{{instance}}")],
                "stack",
            ),
            Panel(
                "Changelog",
                "Bytes per second written to the table's changelog.",
                "Bps",
                [(rate("funnelcast_changelog_bytes_total", "instance"), "{{instance}}")],
                "stack",
            ),
        ],
    ),
]
