"""The console shows what the worker counts, shortens user ids, changes nothing, and works in a real browser."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.contract.events import TYPES
from worker.console import Console
from worker.health import CONDITIONS, Health, HealthServer, serve
from worker.metrics import LATEST_KEPT, LatestTrigger, Metrics

BROWSER = "chromium-headless-shell"
USER = "customer-4711"
TRIGGER = LatestTrigger(USER, "nudge-intent", "intent", "user", "below", 0.21, 0.3, 1_511_568_183_000)


@pytest.fixture
def metrics() -> Metrics:
    metrics = Metrics()
    metrics.identify("taobao", "3", "ab" * 32)
    metrics.taken({0: 12}, np.zeros(11, "u1"), ["future"])
    metrics.answered(11, 0)
    view, end = TYPES.index("product_view"), TYPES.index("session_end")
    types, stages = np.array([view] * 10 + [end], "u1"), np.array([1] * 8 + [3] * 3, "u1")
    metrics.answers(types, stages, np.full((11, 2, 6), 0.25, "f4"), np.zeros(11, bool))
    metrics.end_to_end_seconds.observe(np.full(11, 0.03))
    metrics.lag.labels("0").set(7)
    metrics.lag_seconds.labels("0").set(1.5)
    metrics.table_users.labels("0").set(4)
    metrics.decided({("nudge-intent", "fire"): 1, ("nudge-intent", "cooldown"): 2})
    metrics.latest_triggers.append(TRIGGER)
    return metrics


@pytest.fixture
def health() -> Health:
    health = Health()
    for condition in CONDITIONS:
        health.set(condition, True)
    return health


def data(metrics: Metrics, health: Health, **options: bool) -> dict[str, Any]:
    return dict(json.loads(Console(metrics, health, **options).data()))


def test_the_data_are_the_metrics(metrics: Metrics, health: Health) -> None:
    found = data(metrics, health)
    assert found["ready"] is True
    assert found["model"] == {"name": "taobao", "version": "3", "sha256": "ab" * 32}
    assert found["totals"]["clicks"] == 12
    assert found["totals"]["answers"] == 11
    assert found["totals"]["dead_letters"] == 1
    assert found["stages"]["interest"] == 8
    assert found["chances"]["intent"] == pytest.approx(0.25)
    assert found["partitions"] == [{"partition": "0", "messages": 7, "seconds": 1.5}]
    assert found["suppressed"] == {"cooldown": 2}
    assert found["latency"][-1] == [None, 11]
    assert [trigger["campaign"] for trigger in found["triggers"]] == ["nudge-intent"]


def test_user_ids_are_shortened_unless_asked_for(metrics: Metrics, health: Health) -> None:
    assert USER not in json.dumps(data(metrics, health))
    assert data(metrics, health)["triggers"][0]["user_id"] == "cus…11"
    assert data(metrics, health, full_ids=True)["triggers"][0]["user_id"] == USER
    metrics.latest_triggers.append(TRIGGER._replace(user_id="4711"))
    assert data(metrics, health)["triggers"][0]["user_id"] == "4…"


def test_only_the_latest_triggers_are_kept_the_newest_first(metrics: Metrics, health: Health) -> None:
    for number in range(50):
        metrics.latest_triggers.append(TRIGGER._replace(event_time=number))
    assert [trigger["event_time"] for trigger in data(metrics, health)["triggers"]] == list(
        range(49, 49 - LATEST_KEPT, -1)
    )


def test_a_worker_that_just_started_has_a_console(health: Health) -> None:
    found = data(Metrics(), health)
    assert found["triggers"] == found["partitions"] == []
    assert found["model"] == {}


@pytest.fixture
def server(metrics: Metrics, health: Health) -> Iterator[HealthServer]:
    server = serve("127.0.0.1", 0, health, metrics, Console(metrics, health).pages())
    yield server
    server.close()


def test_the_page_loads_nothing_from_elsewhere(server: HealthServer) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/", timeout=5) as answer:
        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        page = answer.read().decode()
    assert "src=" not in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "innerHTML" not in page  # names come from outside


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_the_console_is_read_only(server: HealthServer, method: str) -> None:
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}/console.json", data=b"{}", method=method)
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(request, timeout=5)
    assert refusal.value.code == 501
    refusal.value.close()


def test_a_browser_shows_throughput_latency_lag_funnel_triggers_and_model(server: HealthServer, tmp_path: Path) -> None:
    if shutil.which(BROWSER) is None:
        pytest.skip(f"{BROWSER} is not installed (Debian: apt-get install {BROWSER})")
    command = [
        BROWSER, "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--virtual-time-budget=5000",
        "--dump-dom", f"http://127.0.0.1:{server.port}/",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    for text in (
        "ready", "model taobao 3 · abababababab", "12 clicks of 4 users", "the oldest for 1.5 s",
        "withheld: cooldown 2", "nudge-intent", "cus…11", "chance of intent anywhere 0.21, below 0.3",
        "1 dead letters", "interest",
    ):  # fmt: skip
        assert text in done.stdout, text
    assert USER not in done.stdout
    assert "no answer" not in done.stdout.split("<script>")[0]
