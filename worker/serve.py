"""`funnelcast worker`: check all that can be checked, then serve until a signal or, with --burst, the topic's end."""

from __future__ import annotations

import argparse
import gc
import logging
import logging.config
from pathlib import Path
from typing import Any

from model.contract.bundle import SHIPPED, Bundle, check_against, load_bundle
from model.contract.sequence import Rules, default_rules, warm
from model.contract.stages import load_funnel
from worker.app import make_service
from worker.app import run as run_app
from worker.console import Console
from worker.health import Health, serve
from worker.metrics import Metrics
from worker.settings import check_state_dir, load_settings
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
    names = ("broker", "bundle", "campaigns", "state_dir", "store", "http_port", "log_level")
    settings = load_settings(**{name: getattr(args, name) for name in names})
    if settings.store == "rocksdb":
        check_state_dir(settings.state_dir)
    bundle = _bundle(settings.bundle)
    check_topics(settings)
    rules, metrics, health = _rules(bundle), Metrics(), Health()
    if bundle is not None:
        metrics.identify(bundle.name, bundle.version, bundle.model_sha256)
        metrics.expect_rates(bundle.contract.base_rates)
    service = make_service(settings, rules, bundle, metrics, health, burst=args.burst)
    health.set("bundle", True)
    warm()  # half a minute of compiling on the event loop would cost the group membership
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


def _bundle(name: str) -> Bundle | None:
    if name == NO_BUNDLE:
        return None
    bundle = load_bundle(Path(name) if name else SHIPPED)
    check_against(bundle, load_funnel())
    return bundle


def _rules(bundle: Bundle | None) -> Rules:
    if bundle is None:
        return default_rules()
    contract = bundle.contract
    return Rules(contract.gap_ms, contract.late_ms, contract.funnel.rules())


def _logging(level: str) -> dict[str, Any]:
    """Plain lines on stderr; the frameworks only speak up when something is wrong, or at debug level."""
    framework = "DEBUG" if level == "debug" else "WARNING"
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
        "loggers": {name: {"level": framework} for name in ("faust", "mode", "aiokafka", "kafka", "asyncio")},
        "root": {"level": level.upper(), "handlers": ["stderr"]},
    }
