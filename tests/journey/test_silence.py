"""Silence on a live source: the session ends at its time, once, whether the worker runs, restarts or hands over."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from model.contract.events import ClickEvent
from tests.support.expectation import Kept
from tests.support.stack import Stack, wait

GAP_MS = 4000


@pytest.fixture
def stack(broker: str, unique: Callable[[str], str], tmp_path: Path) -> Iterator[Stack]:
    settings = {"BUNDLE": "none", "SESSION_GAP_SECONDS": str(GAP_MS / 1000), "LATENESS_SECONDS": "1"}
    stack = Stack(
        broker, unique, tmp_path, environment={f"FUNNELCAST_{name}": value for name, value in settings.items()}
    )
    yield stack
    stack.close()


def click(stack: Stack, user: str) -> int:
    """Produce one click of now; return its time."""
    now_ms = int(time.time() * 1000)
    stack.produce([ClickEvent(user, "product_view", now_ms, "i", "shoes", None, None)])
    return now_ms


def ends(stack: Stack) -> list[Kept]:
    answers = stack.read(stack.topics["stage_probabilities"])
    return [answer for answer in answers if answer.json()["event_type"] == "session_end"]


def test_a_silent_user_of_a_live_source_gets_one_session_end_at_its_time(stack: Stack) -> None:
    stack.start("a")
    stack.wait_ready("a")
    clicked_ms = click(stack, "ada")
    wait(lambda: bool(ends(stack)), 20, lambda: stack.log("a")[-2000:])
    time.sleep(3)
    (end,) = ends(stack)
    assert end.json()["event_time"] == clicked_ms + GAP_MS
    assert end.json()["category"] == "shoes"
    assert end.timestamp >= clicked_ms + GAP_MS


def test_a_session_that_ends_while_no_worker_runs_is_closed_once_after_the_restart(stack: Stack) -> None:
    stack.start("a")
    stack.wait_ready("a")
    clicked_ms = click(stack, "ada")
    wait(lambda: stack.lag() == 0, 20, lambda: stack.log("a")[-2000:])
    stack.signal("a", signal.SIGKILL)
    time.sleep(GAP_MS / 1000)
    assert ends(stack) == []
    stack.start("b")  # another machine: it has no local state
    wait(lambda: bool(ends(stack)), 60, lambda: stack.log("b")[-2000:])
    time.sleep(2)
    assert [end.json()["event_time"] for end in ends(stack)] == [clicked_ms + GAP_MS]
