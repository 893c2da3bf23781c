"""Laws of the reach labels, against a search through all later rows."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from model.contract.events import SESSION_END, TYPE_CODE
from model.contract.features import WIDTH
from model.contract.stages import NO_STAGE, STAGES
from model.histories import Histories
from model.labels import Labels, log_ends, reach_labels

AWARENESS, INTEREST, CONSIDERATION, INTENT, PURCHASE, LOYALTY = range(len(STAGES))
START = 1_511_582_400_000
Row = tuple[int, int, int]  # milliseconds after the start, stage, category


def histories_of(users: list[list[Row]], recorded: list[list[int]] | None = None) -> Histories:
    """Make histories of users' rows; the log is recorded from the start to the last row unless said otherwise."""
    rows = [row for user in users for row in user]
    ts = START + np.array([row[0] for row in rows], "i8")
    n = len(rows)
    return Histories(
        users=[f"u{u}" for u in range(len(users))],
        offsets=np.cumsum([0, *map(len, users)]),
        ts=ts,
        type=np.array([SESSION_END if row[1] == NO_STAGE else TYPE_CODE["click"] for row in rows], "u1"),
        stage=np.array([row[1] for row in rows], "u1"),
        user_stage=np.zeros(n, "u1"),
        item=np.zeros(n, "u4"),
        category=np.array([row[2] for row in rows], "u4"),
        features=np.zeros((n, WIDTH), "u1"),
        source=np.arange(n),
        recorded=START + np.array(recorded or [[0, max((row[0] for row in rows), default=0)]], "i8"),
        duplicates=0,
    )


def searched(users: list[list[Row]], horizon_ms: int) -> np.ndarray:
    """Label by looking at every later row."""
    labels = []
    for user in users:
        for k, (ts, _, category) in enumerate(user):
            later = [row for row in user[k + 1 :] if row[0] <= ts + horizon_ms and row[1] != NO_STAGE]
            scopes = [row for row in later if row[2] == category], later
            labels.append([[any(row[1] >= s for row in rows) for s in range(len(STAGES))] for rows in scopes])
    return np.array(labels, "u1").reshape(-1, 2, len(STAGES))


def reached(labels: Labels, row: int) -> tuple[int, int]:
    """Return how many stages row `row` reaches in its category and anywhere; a stage reached implies those above it."""
    assert (np.diff(labels.reach[row].astype(int)) <= 0).all()
    return int(labels.reach[row, 0].sum()), int(labels.reach[row, 1].sum())


STAGE, CATEGORY = st.sampled_from([*range(len(STAGES)), NO_STAGE]), st.sampled_from([0, 1, 4_294_967_295])
ROWS = st.lists(st.tuples(st.integers(0, 40), STAGE, CATEGORY), max_size=12).map(sorted)


@settings(deadline=None)  # the first call compiles
@given(users=st.lists(ROWS, min_size=1, max_size=4), horizon_ms=st.integers(0, 50))
def test_labels_are_what_a_search_through_all_later_rows_finds(users: list[list[Row]], horizon_ms: int) -> None:
    assert np.array_equal(reach_labels(histories_of(users), horizon_ms).reach, searched(users, horizon_ms))


def test_a_deeper_stage_reaches_those_above_it_and_not_those_below() -> None:
    labels = reach_labels(histories_of([[(0, AWARENESS, 1), (1, INTENT, 1), (2, AWARENESS, 2)]]), 10)
    assert reached(labels, 0) == (INTENT + 1, INTENT + 1)
    assert reached(labels, 1) == (0, AWARENESS + 1)  # the last view lies in another category
    assert reached(labels, 2) == (0, 0)


def test_a_row_never_reaches_by_itself_or_by_another_user() -> None:
    labels = reach_labels(histories_of([[(0, PURCHASE, 1)], [(1, LOYALTY, 1)]]), 10)
    assert not labels.reach.any()


def test_a_session_end_is_labelled_and_counts_for_no_stage() -> None:
    labels = reach_labels(histories_of([[(0, AWARENESS, 1), (5, NO_STAGE, 1), (9, PURCHASE, 1)]]), 4)
    assert [reached(labels, row) for row in range(3)] == [(0, 0), (PURCHASE + 1, PURCHASE + 1), (0, 0)]


def test_the_end_of_the_horizon_counts_and_a_row_whose_horizon_leaves_the_log_is_censored() -> None:
    labels = reach_labels(histories_of([[(0, AWARENESS, 1), (10, INTEREST, 1), (11, NO_STAGE, 1)]], [[0, 20]]), 10)
    assert reached(labels, 0) == (2, 2)
    assert labels.censored.tolist() == [False, False, True]


def test_a_missing_category_is_a_category_of_its_own() -> None:
    labels = reach_labels(histories_of([[(0, AWARENESS, 0), (1, AWARENESS, 1), (2, INTENT, 0)]]), 10)
    assert [reached(labels, row)[0] for row in range(3)] == [INTENT + 1, 0, 0]


def test_a_log_of_several_stretches_censors_at_the_end_of_each() -> None:
    rows = [(0, AWARENESS, 1), (9, NO_STAGE, 1), (12, NO_STAGE, 1), (100, AWARENESS, 1), (115, PURCHASE, 1)]
    histories = histories_of([rows], [[0, 10], [100, 120]])
    assert (log_ends(histories) - START).tolist() == [10, 10, 10, 120, 120]
    assert reach_labels(histories, 5).censored.tolist() == [False, True, True, False, False]
