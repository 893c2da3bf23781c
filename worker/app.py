"""Wiring: the Faust app with its one agent, its table and its transactions; nothing here decides anything."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import faust
import numpy as np
from faust.types import TP

from model.contract.bundle import Bundle
from model.contract.rows import DAY_MS
from model.contract.sequence import Rules
from worker import transport
from worker.assignment import Assignment
from worker.batcher import Batcher, Scoring
from worker.broker import client_options, tls_context
from worker.burst import add_burst
from worker.decode import Bounds
from worker.emitter import EXIT_FATAL, Emitter
from worker.explanations import Explainer
from worker.health import Health
from worker.hotscorer import hot_scorer
from worker.hotstate import HotState
from worker.lanes import Limits
from worker.metrics import Metrics
from worker.outbox import Delivery
from worker.partitions import Partitions
from worker.policy import Outcome, load_policy
from worker.probe import Probe
from worker.records import NO_MODEL, Encoder, Model, Source
from worker.restore import Tables, changelog_reader
from worker.rooms import Rooms, Topics
from worker.rounds import Rounds
from worker.scorer import Scorer
from worker.sequences import TABLE_NAME, SequenceTable
from worker.settings import Settings
from worker.tracing import Tracing, make_tracing
from worker.transactions import Transactions
from worker.transport import Membership

log = logging.getLogger(__name__)

REBALANCE_SECONDS = 10.0
DRAIN_SECONDS = 20.0  # below the 30 s that Kubernetes grants
BEAT_SECONDS = 1.0
INLINE_SECONDS = 0.01  # of a run of the network, which the event loop bears: nothing is to be done before its answers


class WatchedApp(faust.App):
    """Starts its watches at once: Faust's own tasks begin after the recovery, which may take minutes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.watches: list[Callable[[], Coroutine[Any, Any, None]]] = []

    async def on_start(self) -> None:
        await super().on_start()
        for watch in self.watches:
            self.add_future(watch())


@dataclass(frozen=True, slots=True)
class Service:
    """A worker that is wired but not started."""

    app: faust.App
    emitter: Emitter


class DrainingWorker(faust.Worker):
    """Faust's worker, with an end to its shutdown: a rebalance under way was seen to hold it up for good."""

    emitter: Emitter

    def _schedule_shutdown(self, number: signal.Signals) -> None:
        timer = threading.Timer(DRAIN_SECONDS, self._end)
        timer.daemon = True
        timer.start()
        super()._schedule_shutdown(number)

    def _end(self) -> None:
        """End the process: what is committed is whole, what is not is served by the next owner."""
        clean = self.emitter.is_idle() and self.emitter.error is None
        log.warning("not stopped within %d s of the signal: ending now, %s", DRAIN_SECONDS, "idle" if clean else "busy")
        os._exit(0 if clean else EXIT_FATAL)


def make_service(
    settings: Settings, rules: Rules, bundle: Bundle | None, metrics: Metrics, health: Health, *, burst: bool
) -> Service:
    """Wire the rooms; `bundle` None serves records without probabilities."""
    app = _faust_app(settings)
    table: Any = app.Table(TABLE_NAME, default=bytes, partitions=settings.partitions, key_type=bytes, value_type=bytes)
    tracing = make_tracing(settings.tracing_endpoint, settings.tracing_share, settings.app_id, settings.instance_id)
    batcher, hot = _network(settings, bundle, metrics, tracing)
    explainer = _explainer(settings, bundle, metrics)
    rooms = replace(_rooms(settings, rules, bundle, metrics, hot), explainer=explainer)
    metrics.expect_campaigns([campaign.name for campaign in rooms.policy.campaigns], [*Outcome][1:])
    delivery = Delivery(
        settings.broker.split(","),
        settings.app_id,
        settings.stage_probabilities,
        table.changelog_topic_name,
        settings.transaction_chunks,
        settings.max_chunk,
        settings.batch_wait_seconds,
        client_options=client_options(settings),
        tracing=tracing,
    )

    rounds = Rounds()

    def make(partitions: Iterable[TP], membership: Membership) -> Assignment:
        tps = sorted(partitions)
        served = Partitions([tp.partition for tp in tps], table, rooms)
        transactions = Transactions(delivery.producer, tps, membership)
        return Assignment(tps, served, transactions, delivery, batcher, table, metrics, rounds)

    emitter = Emitter(app, make, metrics)
    transport.install(app, emitter, [settings.clickstream], settings.max_chunk, rounds)
    _add_agent(app, settings, emitter)
    probe = Probe(delivery.brokers, settings.clickstream, delivery.client_options)
    recovery = cast(Tables, app.tables).recovery
    recovery.connect = partial(changelog_reader, delivery.brokers, delivery.client_options)
    recovery.group, recovery.source = settings.app_id, settings.clickstream
    recovery.on_restored = emitter.start
    _add_tasks(app, emitter, metrics, health)
    _add_probe(app, probe, metrics, health)
    if explainer is not None:
        app.watches.append(explainer.run)
    if burst:
        add_burst(app, emitter)
    return Service(app, emitter)


def run(service: Service, log_level: str, logging_config: dict[str, Any]) -> int:
    """Serve until a signal; return 0 after a drain and EXIT_FATAL after a failure that a restart may heal."""
    worker = DrainingWorker(service.app, loglevel=log_level, logging_config=logging_config)
    worker.emitter = service.emitter
    code: Any = EXIT_FATAL
    try:
        worker.execute_from_commandline()
    except SystemExit as end:
        code = end.code
    return EXIT_FATAL if service.emitter.error is not None or code is None else int(code)


def _faust_app(settings: Settings) -> WatchedApp:
    return WatchedApp(
        settings.app_id,
        broker=[f"kafka://{broker}" for broker in settings.broker.split(",")],
        broker_credentials=_credentials(settings),
        store=f"{settings.store}://",
        datadir=settings.state_dir,
        Table=SequenceTable,
        TableManager=Tables,
        autodiscover=False,
        web_enabled=False,
        topic_partitions=settings.partitions,
        topic_replication_factor=settings.replication_factor,
        topic_disable_leader=True,
        topic_allow_declare=False,
        consumer_auto_offset_reset="earliest",
        consumer_group_instance_id=settings.instance_id or None,
        consumer_max_fetch_size=16 << 20,
        broker_session_timeout=settings.session_timeout_seconds,
        broker_heartbeat_interval=min(2.0, settings.session_timeout_seconds / 4),
        broker_rebalance_timeout=REBALANCE_SECONDS,
        broker_request_timeout=max(30.0, settings.session_timeout_seconds + 1),  # Faust refuses a longer session
        producer_request_timeout=30.0,
        stream_wait_empty=True,
        worker_redirect_stdouts=False,
    )


def _network(
    settings: Settings, bundle: Bundle | None, metrics: Metrics, tracing: Tracing
) -> tuple[Batcher | None, HotState | None]:
    """Load the graphs; hot state where the bundle has a step graph and there is memory for it."""
    if bundle is None:
        return None, None
    scorer: Scoring
    scorer = whole = Scorer(bundle, settings.inference_threads, metrics.inference_failed)
    metrics.gpu_missing.set(whole.misses_gpu)
    hot, state = None, bundle.contract.state
    slots = settings.hot_state_bytes // state.bytes if state is not None else 0
    if state is not None and slots and whole.on_cpu:
        scorer = hot_scorer(whole, state, slots, settings.inference_threads)
        hot = HotState(slots, state.bytes, metrics)
    limits = Limits(
        settings.batch_size,
        settings.batch_wait_seconds,
        settings.max_waiting_users,
        settings.latency_target_seconds,
        np.array(bundle.contract.base_rates, np.float32) if settings.overload == "degrade" else None,
        INLINE_SECONDS,
    )
    return Batcher(scorer, limits, metrics, tracing=tracing), hot


def _credentials(settings: Settings) -> faust.types.auth.CredentialsT | None:
    context = tls_context(settings)
    if settings.security_protocol.startswith("SASL_"):
        return faust.SASLCredentials(
            username=settings.sasl_username,
            password=settings.sasl_password.get_secret_value(),
            ssl_context=context,
            mechanism=settings.sasl_mechanism,
        )
    return None if context is None else faust.SSLCredentials(context)


def _explainer(settings: Settings, bundle: Bundle | None, metrics: Metrics) -> Explainer | None:
    if bundle is None or not settings.explain_one_in:
        return None
    client = {"bootstrap_servers": settings.broker.split(","), **client_options(settings)}
    return Explainer(settings.explain_one_in, bundle.path, settings.explanations, client, metrics)


def _rooms(settings: Settings, rules: Rules, bundle: Bundle | None, metrics: Metrics, hot: HotState | None) -> Rooms:
    model = NO_MODEL if bundle is None else Model(bundle.name, bundle.version, bundle.model_sha256)
    return Rooms(
        rules=rules,
        bounds=Bounds(settings.max_value_bytes, settings.max_clock_skew_seconds * 1000),
        policy=load_policy(settings.campaigns, settings.holdout_salt.get_secret_value()),
        encoder=lambda partition: Encoder(Source(settings.app_id, settings.clickstream, partition), model),
        topics=Topics(settings.stage_probabilities, settings.triggers, settings.dead_letters, settings.late),
        metrics=metrics,
        hot=hot,
        horizon_ms=DAY_MS if bundle is None else bundle.contract.horizon_ms,
    )


def _add_agent(app: faust.App, settings: Settings, emitter: Emitter) -> None:
    clicks = app.topic(
        settings.clickstream,
        schema=transport.ChunkSchema(key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw"),
    )

    @app.agent(clicks, name="serve")
    async def serve(stream: Any) -> None:
        # noack: the compiled stream iterator would ack, but a chunk is done when its transaction is.
        async for event in stream.noack().events():
            await emitter.submit(event)


def _add_tasks(app: WatchedApp, emitter: Emitter, metrics: Metrics, health: Health) -> None:
    async def watch() -> None:
        while not app.should_stop:
            health.beat()
            health.set("partitions", bool(emitter.writers) and not app.rebalancing)
            health.set("tables", emitter.serving and not app.rebalancing)
            tables: Any = app.tables
            consumer: Any = app.consumer
            metrics.recovery.set(max(0, tables.recovery.active_remaining_total()) if app.in_recovery else 0)
            if emitter.serving and not app.rebalancing:
                emitter.gauge(consumer.highwater, consumer._read_offset.get)
            await asyncio.sleep(BEAT_SECONDS)

    app.watches.append(watch)


def _add_probe(app: WatchedApp, probe: Probe, metrics: Metrics, health: Health) -> None:
    async def ask() -> None:
        asking = asyncio.ensure_future(probe.run())
        try:
            while not app.should_stop:
                health.set("broker", probe.answered)
                metrics.broker_silent_seconds.set(probe.silent_seconds)
                await asyncio.sleep(BEAT_SECONDS)
        finally:
            asking.cancel()

    app.watches.append(ask)
