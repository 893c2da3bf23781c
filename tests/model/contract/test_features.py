"""Each running feature by hand on small stories, the quantiser, and that no feature knows the future."""

import random

import numpy as np
import pytest

from model.contract.events import CLASSES, ClickEvent
from model.contract.features import FEATURES, WIDTH, price_codes, quantise
from model.contract.head import code
from model.contract.sequence import Rows
from tests.model.contract.logs import disorder, synthetic
from tests.model.contract.runs import Run

DAWN = 1_700_006_400_000  # a midnight, UTC
SECOND, MINUTE, HOUR, DAY = 1000, 60_000, 3_600_000, 86_400_000


def story(*events: tuple[int, str] | tuple[int, str, str] | tuple[int, str, str, float]) -> Rows:
    """The rows of one user who did this, at milliseconds after midnight."""
    worker = Run()
    for ts, event, *rest in events:
        category, price = (*rest, None, None)[:2]
        worker.fold([ClickEvent("u", event, DAWN + ts, "i", category, price)])
    return worker.sequences.rows(b"u")


def feature(rows: Rows, name: str) -> list[int]:
    return rows.features[:, FEATURES.index(name)].tolist()


def test_every_feature_has_one_name_and_one_byte() -> None:
    assert WIDTH == len(set(FEATURES)) == 60
    assert story((0, "click")).features.dtype == np.uint8


@pytest.mark.parametrize(
    ("value", "expected"), [(0, 0), (15, 15), (16, 16), (17, 16), (18, 17), (1000, 63), (2**34, 255)]
)
def test_quantise_is_exact_below_16_then_has_eight_steps_per_doubling(value: int, expected: int) -> None:
    assert quantise(value) == expected


def test_the_compiled_quantiser_equals_the_plain_one() -> None:
    edges = [(1 << e) + d for e in range(3, 43) for d in (-1, 0, 1)]
    for value in [*range(5000), *edges, *(random.Random(1).randrange(1 << 43) for _ in range(2000))]:
        assert code(value) == quantise(value)


def test_quantise_never_decreases() -> None:
    codes = [quantise(value) for value in range(100_000)]
    assert codes == sorted(codes)


def test_prices_are_coded_by_their_logarithm_and_missing_ones_apart() -> None:
    assert price_codes(np.array([np.nan, 0.0, 1.0, 99.0, 1e300])).tolist() == [0, 1, 17, 107, 255]


def test_counts_cover_all_time_and_the_windows_that_end_with_the_row() -> None:
    rows = story((0, "search"), (HOUR - 1, "search"), (HOUR, "search"), (6 * HOUR, "search"), (24 * HOUR, "search"))
    searches = rows.type == 3
    assert rows.features[searches][:, FEATURES.index("total_search")].tolist() == [1, 2, 3, 4, 5]
    assert rows.features[searches][:, FEATURES.index("hour_search")].tolist() == [1, 2, 2, 1, 1]
    assert rows.features[searches][:, FEATURES.index("six_hours_search")].tolist() == [1, 2, 3, 3, 1]
    assert rows.features[searches][:, FEATURES.index("day_search")].tolist() == [1, 2, 3, 4, 4]


def test_every_event_type_is_counted_in_its_class() -> None:
    types = {
        "page_view": "browse", "refund": "browse", "product_view": "view", "search": "search", "order": "order",
        "wishlist_add": "wishlist", "cart_add": "cart", "checkout_step": "checkout", "cart_view": "checkout",
    }  # fmt: skip
    for event, kind in types.items():
        counts = [feature(story((0, event)), f"total_{name}")[0] for name in CLASSES]
        assert counts == [int(name == kind) for name in CLASSES]


def test_seconds_since_a_class_leave_the_row_itself_out() -> None:
    rows = story((0, "cart_add"), (999, "click"), (5 * SECOND, "cart_add"))
    assert feature(rows, "seconds_since_cart") == [0, 1, 1 + 5]
    assert feature(rows, "seconds_since_row") == [0, 1, 1 + 4]


def test_days_are_calendar_days_and_session_ends_make_none() -> None:
    rows = story((0, "click"), (23 * HOUR + 50 * MINUTE, "click"), (47 * HOUR, "search"))
    assert rows.type.tolist() == [6, 19, 6, 19, 3]
    assert feature(rows, "days_active") == [1, 1, 1, 1, 2]  # the second session ends on the next day
    assert feature(rows, "days_with_browse") == [1, 1, 1, 1, 1]
    assert feature(rows, "days_with_session") == [0, 1, 1, 2, 2]


def test_the_open_cart_fills_empties_and_is_gone_with_the_order() -> None:
    names = ["cart_remove", "cart_add", "cart_add", "cart_remove", "click", "order", "cart_add"]
    rows = story(*((n * SECOND, name) for n, name in enumerate(names)))
    assert feature(rows, "open_cart") == [0, 1, 2, 1, 1, 0, 1]


def test_sessions_are_counted_and_a_session_end_belongs_to_its_session() -> None:
    assert feature(story((0, "click"), (HOUR, "click"), (2 * HOUR, "click")), "sessions") == [1, 1, 2, 2, 3]


def test_category_features_see_only_events_of_the_rows_category() -> None:
    rows = story(
        (0, "wishlist_add", "a"), (MINUTE, "cart_add", "b"), (2 * MINUTE, "cart_add", "a"), (3 * MINUTE, "click"),
        (4 * MINUTE, "click"), (HOUR, "order", "a"), (24 * HOUR + MINUTE, "click", "a"),
    )  # fmt: skip
    events = rows.type != 19
    columns = {name: rows.features[events][:, FEATURES.index(name)].tolist() for name in FEATURES if "category" in name}
    assert columns["category_hour"] == [1, 1, 2, 1, 2, 2, 1]
    assert columns["category_day"] == [1, 1, 2, 1, 2, 3, 3]
    assert columns["category_day_wishlist"] == [1, 0, 1, 0, 0, 1, 0]
    assert columns["category_day_cart"] == [0, 1, 1, 0, 0, 1, 1]
    assert columns["category_day_order"] == [0, 0, 0, 0, 0, 1, 1]
    since = [0, 0, 120, 0, 60, 3480, 23 * 3600 + 60]
    assert columns["seconds_since_category"] == [0 if s == 0 else 1 + quantise(s) for s in since]


def test_a_session_end_has_the_category_before_it_but_is_no_event_of_it() -> None:
    rows = story((0, "click", "a"), (HOUR, "click", "a"))
    assert rows.category[0] == rows.category[1] == rows.category[2]
    assert feature(rows, "category_hour") == [1, 1, 1]
    assert feature(rows, "seconds_since_category") == [0, 1 + quantise(1800), 1 + quantise(3600)]


def test_hour_and_price_are_the_rows_own() -> None:
    rows = story((13 * HOUR, "click", "a", 1.0), (13 * HOUR + 30 * MINUTE, "click"))
    assert feature(rows, "hour_of_day") == [13, 13]
    assert feature(rows, "price") == [17, 0]


def changed_by_later_events(make: type[Run], seed: int) -> bool:
    """Tell whether rows change when other events follow them."""
    log = synthetic(400, 3, 60, seed)
    cut = random.Random(seed).randrange(100, 400)
    plain, planted = make(), make()
    future = [
        ClickEvent(f"user {n}", "order", log[cut - 1].timestamp + n, "x", f"category {n} é", 5.0) for n in range(3)
    ]
    plain.fold(log[:cut])
    planted.fold(log[:cut] + future + log[cut:])
    both = [(plain.sequences.rows(key), planted.sequences.rows(key)) for key in {row[0] for row in plain.rows}]
    columns = [pair for before, after in both for pair in zip(before, after, strict=True)]
    return not all(np.array_equal(column, longer[: len(column)]) for column, longer in columns)


@pytest.mark.parametrize("seed", range(5))
def test_features_never_depend_on_later_events(seed: int) -> None:
    assert not changed_by_later_events(Run, seed)


class Peeking(Run):
    """A fold with a planted leak: the price of each row is that of the user's next event."""

    def fold(self, events: list[ClickEvent]) -> None:
        following: dict[str, float | None] = {}
        for event in reversed(events):
            event.price, following[event.user_id] = following.get(event.user_id), event.price
        super().fold(events)


@pytest.mark.parametrize("seed", range(5))
def test_a_feature_planted_from_the_next_event_is_found(seed: int) -> None:
    assert changed_by_later_events(Peeking, seed)


def test_a_late_event_is_described_as_if_it_had_come_in_time() -> None:
    log = [event for event in synthetic(600, 3, 20, 7) if event.message_id]
    in_order, late = Run(), Run()
    in_order.fold(log)
    late.fold(disorder(log, most_ms=20_000))
    assert late.verdicts.count(2) == 0
    for key in {row[0] for row in in_order.rows}:
        for column, other in zip(in_order.sequences.rows(key), late.sequences.rows(key), strict=True):
            assert np.array_equal(column, other)
