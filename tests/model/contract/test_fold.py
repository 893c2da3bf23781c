"""The compiled fold against its specification, on real and synthetic logs, however they are cut and disturbed."""

import os
import subprocess
import sys

import pytest

from model.contract.events import ClickEvent
from model.contract.sequence import REVISED, RING
from model.contract.stages import load_funnel
from tests.model.contract.logs import DEMO, ROOT, TAOBAO, clicks, disorder, synthetic
from tests.model.contract.oracle import Oracle
from tests.model.contract.runs import Run, at_random, by_user, run

CROWD = synthetic(3000, 40, 30)
LONG = synthetic(2500, 2, 4)  # longer than the ring


def specified(log: list[ClickEvent]) -> tuple[Oracle, list[tuple], list[int]]:
    """What the oracle says; features of moved rows are compared through the table and through later answers."""
    oracle = Oracle(load_funnel())
    rows, verdicts = oracle.fold(log)
    return oracle, [(*row[:-2], None, None) if row[3] == REVISED else row for row in rows], verdicts


def agrees(log: list[ClickEvent], chunk: int = 700) -> Oracle:
    oracle, rows, verdicts = specified(log)
    worker = run(log, chunk)
    assert worker.verdicts == verdicts
    assert worker.rows == rows
    assert worker.table == oracle.table()
    return oracle


def test_fold_equals_the_oracle_on_every_row_of_a_real_log() -> None:
    agrees(clicks(TAOBAO))


def test_fold_equals_the_oracle_on_a_real_log_in_disorder() -> None:
    agrees(disorder(clicks(TAOBAO, users=150)))


def test_fold_equals_the_oracle_on_the_carried_excerpt() -> None:
    agrees(clicks(DEMO, users=40))


def test_fold_equals_the_oracle_on_a_synthetic_log() -> None:
    agrees(CROWD)


def test_fold_equals_the_oracle_on_a_synthetic_log_in_disorder_with_duplicates() -> None:
    agrees(disorder(CROWD))


def test_fold_equals_the_oracle_on_synthetic_users_longer_than_the_ring() -> None:
    oracle = agrees(LONG)
    assert max(len(user.rows) for user in oracle.users.values()) > 1.5 * RING


def test_fold_equals_the_oracle_on_synthetic_users_longer_than_the_ring_in_disorder() -> None:
    agrees(disorder(LONG))


@pytest.mark.parametrize("chunk", [1, 97, 100_000])
def test_answers_and_bytes_do_not_depend_on_how_the_log_is_cut(chunk: int) -> None:
    log = disorder(LONG, seed=3)
    first, second = run(log, 1000), run(log, chunk)
    assert (second.rows, second.verdicts, second.table) == (first.rows, first.verdicts, first.table)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("log", [disorder(CROWD), disorder(LONG)], ids=["crowd", "long"])
def test_timers_commits_and_restarts_change_neither_answers_nor_bytes(log: list[ClickEvent], seed: int) -> None:
    plain, disturbed = run(log), run(log, chunk=150 + seed, between=at_random(seed))
    for worker in (plain, disturbed):
        worker.close_due(worker.sequences.streams[0])
        worker.commit()
    assert by_user(disturbed.rows) == by_user(plain.rows)
    assert (disturbed.verdicts, disturbed.table) == (plain.verdicts, plain.table)


def test_a_session_ends_once_with_the_same_row_by_timer_by_next_event_and_by_gap() -> None:
    def rows_of(*steps: ClickEvent | int) -> list[tuple]:
        worker = Run()
        for step in steps:
            worker.close_due(step) if isinstance(step, int) else worker.fold([step])
        return [(*row[:2], *row[3:]) for row in by_user(worker.rows)[b"u"]]  # all but the source

    first, minute = 1_700_000_000_000, 60_000
    click, later = ClickEvent("u", "click", first), ClickEvent("u", "click", first + 40 * minute)
    by_gap = rows_of(click, later)
    by_timer = rows_of(click, first + 31 * minute, first + 35 * minute, later)
    by_stream = rows_of(click, ClickEvent("v", "click", first + 31 * minute), later)
    assert by_gap == by_timer == by_stream
    assert [(row[2], row[3] - first) for row in by_gap] == [(0, 0), (1, 30 * minute), (0, 40 * minute)]
    assert rows_of(click, first + 31 * minute - 1) == by_gap[:1]


def test_a_closed_session_never_reopens() -> None:
    worker, first = Run(), 1_700_000_000_000
    worker.fold([ClickEvent("u", "click", first)])
    worker.close_due(first + 1_860_000)
    worker.fold([ClickEvent("u", "click", first + 1_799_999), ClickEvent("u", "click", first + 1_800_000)])
    assert worker.verdicts == [0, 2, 0]
    assert [row[5] for row in worker.rows] == [6, 19, 6]


def test_a_session_is_due_once_its_user_is_silent_for_so_long() -> None:
    worker, first = Run(), 1_700_000_000_000
    assert not worker.sequences.is_due(2 * first)
    worker.fold([ClickEvent("u", "click", first), ClickEvent("v", "click", first - 5)])
    for latest in (first - 5, first):
        assert not worker.sequences.is_due(latest + 1_860_000 - 1)
        assert worker.sequences.is_due(latest + 1_860_000)
        worker.close_due(latest + 1_860_000)
    assert not worker.sequences.is_due(2 * first)


def test_a_late_insert_revises_later_rows_and_answers_only_its_own() -> None:
    worker, first = Run(), 1_700_000_000_000
    worker.fold([ClickEvent("u", "click", first + ms) for ms in (0, 20_000, 10_000)])
    assert [(row[1], row[3], row[4] - first) for row in worker.rows] == [
        (0, 0, 0), (1, 0, 20_000), (1, 0, 10_000), (2, REVISED, 20_000),
    ]  # fmt: skip


def test_events_without_a_message_id_are_never_duplicates() -> None:
    worker = Run()
    worker.fold([ClickEvent("u", "click", 1_700_000_000_000)] * 3)
    assert worker.verdicts == [0, 0, 0]


def test_a_message_id_is_remembered_over_eight_later_ones() -> None:
    worker, first = Run(), 1_700_000_000_000
    ids = ["m0", *(f"m{n}" for n in range(8)), "m8", "m0"]
    worker.fold([ClickEvent("u", "click", first + n, message_id=name) for n, name in enumerate(ids)])
    assert worker.verdicts == [0, 1, *[0] * 7, 0, 0]


def test_the_fold_never_reaches_outside_its_arrays() -> None:
    if os.environ.get("FUNNELCAST_BOUNDSCHECK") == "1":
        pytest.skip("this is the run with bounds checks already")
    command = [sys.executable, "-m", "pytest", "-q", "-x", __file__, "-k", "timers or cut"]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "FUNNELCAST_BOUNDSCHECK": "1"}, capture_output=True)
    assert done.returncode == 0, done.stdout.decode()
