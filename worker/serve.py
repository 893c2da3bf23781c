"""`funnelcast worker`: check all that can be checked, then serve until a signal or, with --burst, the topic's end."""

from __future__ import annotations

import argparse
import gc
import logging
import logging.config
import signal
import sys
from pathlib import Path
from typing import Any

from model.contract.bundle import SHIPPED, Bundle, check_against, load_bundle
from model.contract.sequence import Rules, warm
from model.contract.stages import Funnel, load_funnel
from worker import outcomes, policy, records
from worker.app import make_service
from worker.app import run as run_app
from worker.console import Console
from worker.health import Health, serve
from worker.metrics import Metrics
from worker.settings import Settings, check_state_dir, load_settings
from worker.topics import check_topics

log = logging.getLogger("worker")

NO_BUNDLE = "none"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options that override FUNNELCAST_ variables."""
    parser.add_argument("--broker", metavar="HOST:PORT", help="Kafka bootstrap server (FUNNELCAST_BROKER)")
    parser.add_argument(
        "--bundle", metavar="DIR", help="model bundle; 'none' serves without a model (default: the shipped one)"
    )
    parser.add_argument(
        "--campaigns", type=Path, metavar="FILE", help="campaign rules (default: the shipped campaigns.yaml)"
    )
    parser.add_argument("--state-dir", type=Path, metavar="DIR", help="where RocksDB keeps the user sequences")
    parser.add_argument("--store", choices=("rocksdb", "memory"), help="where the table lives (default rocksdb)")
    parser.add_argument(
        "--http-port", type=int, metavar="PORT", help="port of /live, /ready and /metrics; 0 takes a free one"
    )
    parser.add_argument("--full-ids", action="store_true", help="show whole user ids in the console")
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"), help="default info")
    parser.add_argument(
        "--burst", action="store_true", help="answer what the topic holds now, then stop with exit code 0"
    )


def run(args: argparse.Namespace) -> int:
    """Serve; return the exit code: 0 after a drain."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # nothing to drain yet; the event loop takes over later
    names = ("broker", "bundle", "campaigns", "state_dir", "store", "http_port", "log_level")
    settings = load_settings(**{name: getattr(args, name) for name in names})
    if settings.store == "rocksdb":
        check_state_dir(settings.state_dir)
    funnel = load_funnel(settings.funnel)
    rules = _rules(settings, funnel)
    bundle = _bundle(settings.bundle, funnel, rules)
    check_topics(settings)
    metrics, health = Metrics(), Health()
    if bundle is not None:
        metrics.identify(bundle.name, bundle.version, bundle.model_sha256)
        metrics.expect_rates(bundle.contract.base_rates)
    service = make_service(settings, rules, bundle, metrics, health, burst=args.burst)
    health.set("bundle", True)
    warm()  # half a minute of compiling on the event loop would cost the group membership
    records.warm()
    policy.warm()
    outcomes.warm()
    # Millions of long-lived objects are there and few cycles are made: most collections would find nothing.
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    pages = Console(metrics, health, full_ids=args.full_ids).pages()
    server = serve(settings.http_host, settings.http_port, health, metrics, pages)
    logging.config.dictConfig(_logging(settings.log_level))
    log.info(
        "http://%s:%d/ shows the console, /live, /ready and /metrics are beside it; settings:\n%s",
        settings.http_host,
        server.port,
        settings.describe(),
    )
    try:
        return run_app(service, settings.log_level, _logging(settings.log_level))
    finally:
        server.close()


def _rules(settings: Settings, funnel: Funnel) -> Rules:
    return Rules(int(settings.session_gap_seconds * 1000), int(settings.lateness_seconds * 1000), funnel.rules())


def _bundle(name: str, funnel: Funnel, rules: Rules) -> Bundle | None:
    if name == NO_BUNDLE:
        return None
    bundle = load_bundle(Path(name) if name else SHIPPED)
    check_against(bundle, funnel, rules.gap_ms, rules.late_ms)
    return bundle


class OncePerSecond(logging.Filter):
    """Lets a message through once a second: clients repeat themselves at every try while a broker is down."""

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if record.created - self._said.get(message, 0.0) < 1.0:
            return False
        if len(self._said) > 1000:
            self._said.clear()
        self._said[message] = record.created
        return True


def _logging(level: str) -> dict[str, Any]:
    """Plain lines on stderr; the frameworks only speak up when something is wrong, or at debug level."""
    framework = "DEBUG" if level == "debug" else "WARNING"
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}},
        "filters": {"once": {"()": OncePerSecond}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line", "filters": ["once"]}},
        "loggers": {name: {"level": framework} for name in ("faust", "mode", "aiokafka", "kafka", "asyncio")},
        "root": {"level": level.upper(), "handlers": ["stderr"]},
    }
