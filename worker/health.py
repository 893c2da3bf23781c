"""Health: named conditions and a heartbeat from the worker in; /live, /ready, /metrics and more pages out, on a thread.

Live means that the event loop still turns, whatever the broker does. Ready means that every condition is true.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgspec

from model.contract.errors import FunnelcastError
from worker.metrics import Metrics

CONDITIONS = ("partitions", "tables", "bundle", "broker")
# What the pages may load: themselves and nothing from elsewhere.
CONTENT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:"
)
Page = Callable[[], tuple[bool, bytes, str]]  # whether all is well (200, else 503), body, content type
STALLED_SECONDS = 30.0  # far above the longest synchronous stretch; a restart costs a rebalance


class HealthError(FunnelcastError):
    """The health server cannot be started."""


class Health:
    """What the worker says about itself; safe to read from any thread."""

    def __init__(
        self,
        conditions: tuple[str, ...] = CONDITIONS,
        stalled_seconds: float = STALLED_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._conditions = dict.fromkeys(conditions, False)
        self._stalled_seconds, self._clock = stalled_seconds, clock
        self._beat_at = clock()

    def beat(self) -> None:
        """Say that the event loop turns."""
        self._beat_at = self._clock()

    def set(self, condition: str, value: bool) -> None:
        """State one condition of readiness."""
        assert condition in self._conditions, condition
        self._conditions[condition] = value

    @property
    def silent_seconds(self) -> float:
        """Return the time since the last heartbeat."""
        return self._clock() - self._beat_at

    @property
    def live(self) -> bool:
        """Tell whether the event loop turned lately."""
        return self.silent_seconds <= self._stalled_seconds

    @property
    def ready(self) -> bool:
        """Tell whether every condition holds, and the worker is live."""
        return self.live and all(self._conditions.values())

    @property
    def conditions(self) -> dict[str, bool]:
        """Return the conditions as they are now."""
        return dict(self._conditions)


class HealthServer:
    """The HTTP server; `port` is the one it got."""

    def __init__(self, server: ThreadingHTTPServer) -> None:
        self._server = server
        self.port = int(server.server_address[1])
        self._thread = threading.Thread(target=server.serve_forever, args=(0.1,), name="health", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving and free the port."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def serve(
    host: str, port: int, health: Health, metrics: Metrics, pages: Mapping[str, Page] | None = None
) -> HealthServer:
    """Serve on host and port, `pages` by path beside our own; port 0 takes any free one."""
    try:
        server = ThreadingHTTPServer((host, port), _handler(health, metrics, pages or {}))
    except OSError as error:
        raise HealthError(
            f"cannot serve /live, /ready and /metrics at {host}:{port} ({error.strerror}), the port must be free; "
            "end what uses it or set FUNNELCAST_HTTP_PORT (0: any free one)"
        ) from error
    server.daemon_threads = True
    return HealthServer(server)


def _handler(health: Health, metrics: Metrics, pages: Mapping[str, Page]) -> type[BaseHTTPRequestHandler]:
    def live() -> tuple[bool, bytes, str]:
        body = {"live": health.live, "silent_seconds": round(health.silent_seconds, 3)}
        return health.live, msgspec.json.encode(body), "application/json"

    def ready() -> tuple[bool, bytes, str]:
        body = {"ready": health.ready, "live": health.live, "conditions": health.conditions}
        return health.ready, msgspec.json.encode(body), "application/json"

    def page() -> tuple[bool, bytes, str]:
        metrics.ready.set(health.ready)
        metrics.loop_silent_seconds.set(health.silent_seconds)
        for condition, holds in health.conditions.items():
            metrics.condition.labels(condition).set(holds)
        return True, metrics.page(), "text/plain; version=0.0.4; charset=utf-8"

    answers: dict[str, Page] = {**pages, "/live": live, "/ready": ready, "/metrics": page}

    class Handler(BaseHTTPRequestHandler):
        timeout = 10  # a silent client does not keep its thread

        def do_GET(self) -> None:
            answer = answers.get(self.path.split("?")[0])
            if answer is None:
                self.send_error(404, f"use {', '.join(answers)}")
                return
            good, body, kind = answer()
            self.send_response(200 if good else 503)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Security-Policy", CONTENT_POLICY)
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Probes are no news."""

    return Handler
