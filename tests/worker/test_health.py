"""/live says whether the event loop turns, /ready whether every condition holds, /metrics what was counted."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from worker.health import CONDITIONS, Health, HealthError, HealthServer, serve
from worker.metrics import Metrics


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(clock: Clock) -> Health:
    return Health(clock=clock)


@pytest.fixture
def server(health: Health) -> Iterator[HealthServer]:
    server = serve("127.0.0.1", 0, health, Metrics())
    yield server
    server.close()


def get(server: HealthServer, path: str) -> tuple[int, str, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=5) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["Content-Type"], error.read().decode()


def body(server: HealthServer, path: str) -> tuple[int, Any]:
    code, kind, text = get(server, path)
    assert kind == "application/json"
    return code, json.loads(text)


def test_ready_only_when_every_condition_holds(server: HealthServer, health: Health) -> None:
    assert body(server, "/ready") == (
        503,
        {"ready": False, "live": True, "conditions": dict.fromkeys(CONDITIONS, False)},
    )
    for condition in CONDITIONS:
        assert not health.ready
        health.set(condition, True)
    assert body(server, "/ready") == (200, {"ready": True, "live": True, "conditions": dict.fromkeys(CONDITIONS, True)})
    health.set("partitions", False)
    code, found = body(server, "/ready")
    assert (code, found["conditions"]["partitions"]) == (503, False)


def test_live_until_the_heartbeat_stopped_for_long(server: HealthServer, health: Health, clock: Clock) -> None:
    clock.now += 30
    assert body(server, "/live") == (200, {"live": True, "silent_seconds": 30.0})
    clock.now += 0.5
    assert body(server, "/live") == (503, {"live": False, "silent_seconds": 30.5})
    health.beat()
    assert body(server, "/live")[0] == 200


def test_a_stalled_worker_is_not_ready(health: Health, clock: Clock) -> None:
    for condition in CONDITIONS:
        health.set(condition, True)
    clock.now += 31
    assert not health.ready


def test_live_does_not_depend_on_the_conditions(server: HealthServer) -> None:
    assert get(server, "/live?probe=1")[0] == 200


def test_metrics_are_served_with_readiness(server: HealthServer, health: Health) -> None:
    code, kind, text = get(server, "/metrics")
    assert code == 200
    assert kind.startswith("text/plain")
    assert "funnelcast_ready 0.0" in text
    for condition in CONDITIONS:
        health.set(condition, True)
    assert "funnelcast_ready 1.0" in get(server, "/metrics")[2]


def test_other_paths_are_not_found(server: HealthServer) -> None:
    assert get(server, "/elsewhere")[0] == 404


def test_an_unknown_condition_is_a_mistake(health: Health) -> None:
    with pytest.raises(AssertionError):
        health.set("weather", True)


def test_a_taken_port_is_refused_in_one_sentence(server: HealthServer, health: Health) -> None:
    with pytest.raises(HealthError, match=f"cannot serve .* at 127.0.0.1:{server.port} .*FUNNELCAST_HTTP_PORT"):
        serve("127.0.0.1", server.port, health, Metrics())


def test_a_closed_server_frees_its_port(health: Health) -> None:
    first = serve("127.0.0.1", 0, health, Metrics())
    first.close()
    serve("127.0.0.1", first.port, health, Metrics()).close()
