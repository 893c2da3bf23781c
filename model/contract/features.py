"""The running features of a row: names in byte order, and the code of counts and seconds in one byte."""

from typing import Any

import numpy as np
import numpy.typing as npt

from model.contract.events import CLASSES

_PER_CLASS = ("total", "hour", "six_hours", "day", "seconds_since", "days_with")
FEATURES: tuple[str, ...] = (
    *(f"{group}_{name}" for group in _PER_CLASS for name in CLASSES),
    "days_active", "open_cart", "sessions", "category_hour", "category_day", "seconds_since_category",
    "category_day_wishlist", "category_day_cart", "category_day_order", "seconds_since_row", "hour_of_day", "price",
)  # fmt: skip
WIDTH = len(FEATURES)

# Where they lie: six groups by feature class, then single bytes.
TOTAL, WINDOWS, SINCE, DAYS_WITH = 0, 8, 32, 40
DAYS_ACTIVE, OPEN_CART, SESSIONS, CATEGORY_HOUR, CATEGORY_DAY, SINCE_CATEGORY = range(48, 54)
CATEGORY_WISHLIST, CATEGORY_CART, CATEGORY_ORDER, SINCE_ROW, HOUR_OF_DAY, PRICE = range(54, 60)


def price_codes(prices: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Code prices, float64 and NaN where missing, in one byte: 0 missing, else 1 + 16 log2(1 + price)."""
    steps = np.minimum(254, np.rint(16 * np.log2(1 + prices)))
    return np.where(np.isnan(prices), 0, 1 + steps).astype(np.uint8)


def quantise(value: int) -> int:
    """Code a count or a number of seconds in one byte: exact below 16, then eight steps per doubling, at most 255."""
    if value < 8:
        return value
    exponent = value.bit_length() - 1
    return min(255, (exponent - 2) * 8 + ((value >> (exponent - 3)) & 7))
