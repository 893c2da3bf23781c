"""Micro-batches are as large and wait as long as configured, less where the latency target would not be kept."""

from __future__ import annotations

import pytest

from worker.pace import SHARE, Pace


def test_before_anything_is_measured_the_configured_size_and_wait_hold() -> None:
    pace = Pace(size=64, wait_seconds=0.005, target_seconds=0.1)
    assert (pace.size(), pace.wait_seconds(64)) == (64, 0.005)


def test_a_fast_network_changes_nothing() -> None:
    pace = Pace(size=64, wait_seconds=0.005, target_seconds=0.1)
    pace.ran(64, 64 * 20e-6)
    assert (pace.size(), pace.wait_seconds(64)) == (64, 0.005)


def test_a_slow_network_gets_small_micro_batches_at_once() -> None:
    pace = Pace(size=64, wait_seconds=0.005, target_seconds=0.1)
    pace.ran(10, 10 * 0.003)
    assert pace.size() == int(SHARE * 0.1 / 2 / 0.003)
    assert pace.wait_seconds(9) == pytest.approx(0.003)
    assert pace.wait_seconds(10) == 0


def test_a_run_is_never_empty() -> None:
    pace = Pace(size=64, wait_seconds=0.005, target_seconds=0.001)
    pace.ran(1, 2.0)
    assert (pace.size(), pace.wait_seconds(1)) == (1, 0)


def test_the_pace_follows_a_change_of_the_service_time() -> None:
    pace = Pace(size=1000, wait_seconds=0.0, target_seconds=0.1)
    pace.ran(10, 10 * 0.010)
    for _ in range(60):
        pace.ran(10, 10 * 0.001)
    assert pace.size() == pytest.approx(SHARE * 0.1 / 2 / 0.001, abs=1)


def test_where_the_fixed_cost_alone_is_too_much_micro_batches_do_not_shrink_below_its_worth() -> None:
    pace = Pace(size=64, wait_seconds=0.005, target_seconds=0.1, fixed_units=28)
    pace.ran(64, (28 + 64) * 20e-6)
    assert pace.size() == 64
    for _ in range(100):
        pace.ran(pace.size(), (28 + pace.size()) * 500e-6)  # the machine is busy: everything takes 25 times as long
    assert pace.size() == 28
    for _ in range(100):
        pace.ran(pace.size(), (28 + pace.size()) * 200e-6)
    assert pace.size() == pytest.approx(SHARE * 0.1 / 2 / 200e-6 - 28, abs=1)


def test_how_long_a_run_holds_up_the_loop_is_learned_on_the_loop_and_forgotten_in_threads() -> None:
    pace = Pace(size=64, wait_seconds=0.005, target_seconds=0.1)
    assert pace.inline_seconds(10) == 0  # so the first run is tried on the loop
    pace.ran(10, 10 * 0.001, inline=True)
    assert pace.inline_seconds(10) == pytest.approx(0.01)
    pace.ran(10, 10 * 0.1)  # it waited for the loop
    assert pace.inline_seconds(10) < 0.01
    for _ in range(200):
        pace.ran(10, 10 * 0.1)
    assert pace.inline_seconds(10) < 0.002  # one slow run on the loop is no verdict for ever
