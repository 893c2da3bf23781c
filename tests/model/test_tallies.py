"""Laws of the tallies: they count what came before a row, of its user alone, and nothing that comes after it."""

import numpy as np
import pytest

from model.contract.events import CLASS_OF, N_CLASSES, SESSION_END, TYPE_CODE
from model.contract.features import WIDTH
from model.contract.rows import DAY_MS
from model.examples import Examples
from model.tallies import tallies

KINDS = [TYPE_CODE[name] for name in ("product_view", "wishlist_add", "cart_add", "order", "session_end")]
USERS, ROWS = 6, 50


@pytest.fixture(scope="module")
def data() -> Examples:
    draw, n = np.random.default_rng(0), USERS * ROWS
    ts = np.sort(draw.integers(0, 5 * DAY_MS, (USERS, ROWS)), axis=1).ravel()
    kind, item, category = draw.choice(KINDS, n).astype(np.uint8), draw.integers(0, 9, n), draw.integers(0, 4, n)
    start, nothing = np.arange(0, n + 1, ROWS), np.zeros((n, WIDTH), np.uint8)
    return Examples(
        tuple(map(str, range(USERS))), start, ts, kind, item, category, nothing, np.zeros((n, 2, 6), np.int8)
    )


def by_hand(data: Examples, row: int) -> list[float]:
    """Count one row's tallies by walking through the rows of its user."""
    begin = int(data.start[row // ROWS])
    session = [int((data.type[begin:one] == SESSION_END).sum()) for one in range(begin, row + 1)]
    past = [
        (int(data.ts[i] // DAY_MS), session[i - begin], int(data.category[i]), int(data.item[i]), i)
        for i in range(begin, row + 1)
    ]
    found: list[float] = []
    for key in (2, 3, 1):
        mine = [one for one in past if one[key] == past[-1][key]]
        classes = np.bincount([CLASS_OF[data.type[one[4]]] for one in mine], minlength=N_CLASSES)
        before = mine[-2][4] if len(mine) > 1 else row
        found += [len(mine), *(len({one[part] for one in mine}) for part in range(4)), *classes]
        found += [float(data.ts[row] - data.ts[mine[0][4]]), float(data.ts[row] - data.ts[before])]
    return [*found, found[0] / len(past)]


def test_a_tally_counts_the_rows_of_the_same_category_item_and_session_up_to_its_own(data: Examples) -> None:
    rows = np.arange(3, USERS * ROWS, 7)
    np.testing.assert_allclose(tallies(data, rows), [by_hand(data, row) for row in rows], rtol=1e-6)


def test_what_comes_after_a_row_changes_no_tally_of_it(data: Examples) -> None:
    rows = np.arange(20)
    later = np.arange(len(data.ts)) >= 20
    other = data._replace(
        ts=data.ts + later * DAY_MS, category=data.category + 3 * later, item=np.where(later, data.item[5], data.item)
    )
    np.testing.assert_array_equal(tallies(other, rows), tallies(data, rows))


def test_tallies_of_a_user_are_the_same_whoever_else_is_asked_about(data: Examples) -> None:
    rows = np.arange(len(data.ts))
    mine = rows[2 * ROWS : 3 * ROWS : 2]
    np.testing.assert_array_equal(tallies(data, mine), tallies(data, rows)[mine])
