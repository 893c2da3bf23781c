"""Laws against the future: nothing that a row tells, and no label that a fit on the past sees, comes from later.

Each check is shown to bite: leaks of the kinds that happen are planted and must be found.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from model import histories
from model.contract.rows import HOUR_MS, Array
from model.contract.stages import load_funnel
from model.contract.vocabulary import Vocabulary
from model.datasets import LogColumns, LogOptions, read_columns, read_log
from model.evaluation import splits
from model.examples import CENSORED, Examples, examples_of, labelled, rules_of
from model.histories import Replay, replay_groups
from tests.support.clicks import EXCERPT
from tests.support.leaks import Make, leaks, unlike, until

FUNNEL, VOCABULARY, HORIZON_MS = load_funnel(), Vocabulary(), 24 * HOUR_MS
FEATURE = 17  # where leaks are planted
Before = Callable[[Examples, int, int], Examples]


@pytest.fixture(scope="module")
def columns() -> LogColumns:
    return read_columns(read_log(EXCERPT, "taobao", LogOptions(progress=False)))


def make(columns: LogColumns) -> Examples:
    return examples_of(columns, "log", FUNNEL, HORIZON_MS, VOCABULARY, progress=False)[0]


def moments(columns: LogColumns) -> list[int]:
    first, last = int(columns.ts.min()), int(columns.ts.max())
    return [first + int(share * (last - first)) for share in (0.3, 0.5, 0.8)]


def of_next_row(columns: LogColumns) -> Examples:
    """Plant the type of the user's next row in a feature."""
    examples = make(columns)
    features, following = examples.features.copy(), np.roll(examples.type, -1)
    following[examples.start[1:] - 1] = 0
    features[:, FEATURE] = following
    return examples._replace(features=features)


def of_all_rows(columns: LogColumns) -> Examples:
    """Plant the number of rows that the user will ever have."""
    examples = make(columns)
    features = examples.features.copy()
    features[:, FEATURE] = np.repeat(np.diff(examples.start), np.diff(examples.start)) % 251
    return examples._replace(features=features)


def of_whole_log(columns: LogColumns) -> Examples:
    """Plant how often the row's category comes in the whole log: an encoding fitted on more than the past."""
    examples = make(columns)
    features = examples.features.copy()
    _, back, counts = np.unique(examples.category, return_inverse=True, return_counts=True)
    features[:, FEATURE] = counts[back] % 251
    return examples._replace(features=features)


def beyond_horizon(columns: LogColumns) -> Examples:
    """Label by two days what is censored by one."""
    examples = make(columns)
    longer = examples_of(columns, "log", FUNNEL, 2 * HORIZON_MS, VOCABULARY, progress=False)[0].reach
    known = (examples.reach != CENSORED) & (longer != CENSORED)
    return examples._replace(reach=np.where(known, longer, examples.reach))


def test_no_row_of_real_clicks_tells_what_came_after_it(columns: LogColumns) -> None:
    for moment in moments(columns):
        assert len(make(until(columns, moment)).ts) > 1000
        assert leaks(make, columns, moment) == set()


@pytest.mark.parametrize(
    ("leaking", "told"),
    [(of_next_row, "features"), (of_all_rows, "features"), (of_whole_log, "features"), (beyond_horizon, "reach")],
)
def test_a_planted_leak_is_found(columns: LogColumns, leaking: Make, told: str) -> None:
    for moment in moments(columns):
        assert leaks(leaking, columns, moment) == {told}


def test_a_replay_that_describes_rows_when_later_ones_are_folded_is_found(
    columns: LogColumns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The leak sits in the replay itself: each row gets the features of the next row that its block wrote."""
    honest = Replay.written

    def peeking(self: Replay, block: Any, source: Array) -> Any:
        rows = honest(self, block, source)
        order = np.argsort(rows.slot, kind="stable")
        following = np.append(order[1:], order[-1:])
        same = rows.slot[order] == rows.slot[following]
        features = rows.features.copy()
        features[order[same]] = rows.features[following[same]]
        return rows._replace(features=features)

    monkeypatch.setattr(histories.Replay, "written", peeking)
    assert all(leaks(make, columns, moment) == {"features"} for moment in moments(columns))


def leaks_into_the_past(before: Before, columns: LogColumns, moment: int) -> set[str]:
    """Name the fields in which a fit on the past sees more than a log whose recording stopped at the moment gives."""
    recorded = np.array([[columns.ts.min(), moment]])
    (replayed,) = replay_groups(until(columns, moment), rules_of(FUNNEL), False, 1 << 40, recorded)
    known, seen = labelled(replayed, HORIZON_MS, VOCABULARY), before(make(columns), moment, HORIZON_MS)
    found = unlike(known, seen)
    if (seen.reach != CENSORED).sum() > (known.reach != CENSORED).sum():
        found.add("reach")
    return found | ({"ts"} if (seen.ts >= moment).any() else set())


def test_a_fit_on_the_past_sees_what_a_log_that_ends_there_gives(columns: LogColumns) -> None:
    for moment in moments(columns):
        assert leaks_into_the_past(splits.before, columns, moment) == set()
        assert (splits.before(make(columns), moment, HORIZON_MS).reach != CENSORED).sum() > 1000


@pytest.mark.parametrize(
    ("before", "told"),
    [
        (lambda examples, moment, horizon_ms: splits.before(examples, moment, horizon_ms - HOUR_MS), {"reach"}),
        (lambda examples, moment, horizon_ms: splits.before(examples, moment + HOUR_MS, horizon_ms), {"reach", "ts"}),
    ],
)
def test_a_split_that_leaks_the_future_into_the_past_is_found(
    columns: LogColumns, before: Before, told: set[str]
) -> None:
    for moment in moments(columns):
        assert leaks_into_the_past(before, columns, moment) == told
