"""Envelopes: one parsed JSON object (our own, Segment v1 or v2, GA4) in, one `ClickEvent` or a `DecodeError` out.

The slow, exact half of `decode`: it names what is wrong, and reads what the other half refuses (RFC 3339, numeric ids).
Of several products the first one with an id stands for the event; quantity and the others are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any

import msgspec

from model.contract.events import MAX_TIMESTAMP_MS, WIRE_TYPES, ClickEvent

MAX_TEXT = 256  # characters of an id, a category or a message id
MAX_PRICE = 1e12
WIRE_EVENTS = frozenset(WIRE_TYPES)

GA4 = {
    "page_view": "page_view",
    "search": "search",
    "view_search_results": "search",
    "view_item_list": "list_view",
    "view_promotion": "promotion_view",
    "select_item": "click",
    "select_promotion": "click",
    "view_item": "product_view",
    "add_to_wishlist": "wishlist_add",
    "add_to_cart": "cart_add",
    "remove_from_cart": "cart_remove",
    "view_cart": "cart_view",
    "begin_checkout": "checkout_start",
    "add_shipping_info": "checkout_step",
    "add_payment_info": "checkout_step",
    "purchase": "order",
    "refund": "refund",
    "share": "share",
    "sign_up": "sign_up",
    "login": "sign_up",
    "generate_lead": "sign_up",
}
SEGMENT = {
    "products searched": "search",
    "product list viewed": "list_view",
    "product list filtered": "list_view",
    "viewed product category": "list_view",
    "promotion viewed": "promotion_view",
    "viewed promotion": "promotion_view",
    "product clicked": "click",
    "promotion clicked": "click",
    "clicked product": "click",
    "clicked promotion": "click",
    "product viewed": "product_view",
    "viewed product": "product_view",
    "product added to wishlist": "wishlist_add",
    "product added": "cart_add",
    "wishlist product added to cart": "cart_add",
    "added product": "cart_add",
    "product removed": "cart_remove",
    "removed product": "cart_remove",
    "cart viewed": "cart_view",
    "checkout started": "checkout_start",
    "started order": "checkout_start",
    "checkout step viewed": "checkout_step",
    "checkout step completed": "checkout_step",
    "payment info entered": "checkout_step",
    "order completed": "order",
    "completed order": "order",
    "order refunded": "refund",
    "order cancelled": "refund",
    "product shared": "share",
    "cart shared": "share",
    "product reviewed": "review",
    "signed up": "sign_up",
}
SEGMENT_CALLS = {"page": "page_view", "identify": "sign_up"}  # calls that are events by themselves
SEGMENT_TYPES = frozenset({"track", "page", "identify", "screen", "group", "alias"})


class Reason(StrEnum):
    """Why a record became a dead letter."""

    TOMBSTONE = "tombstone"
    NULL_KEY = "null_key"
    KEY_MISMATCH = "key_mismatch"
    TOO_LARGE = "too_large"
    TOO_LONG = "too_long"
    INVALID_UTF8 = "invalid_utf8"
    INVALID_JSON = "invalid_json"
    NOT_AN_OBJECT = "not_an_object"
    UNKNOWN_EVENT = "unknown_event"
    MISSING_USER = "missing_user"
    MISSING_FIELD = "missing_field"
    WRONG_TYPE = "wrong_type"
    OUT_OF_RANGE = "out_of_range"
    FUTURE = "future"


class DecodeError(Exception):
    """A record that is no click event: its reason, and a detail for the person who reads the dead letter."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def read(body: Mapping[str, Any]) -> ClickEvent:
    """Read an object of any accepted vocabulary, told apart by its envelope."""
    if "event_name" in body and "event" not in body:
        return _ga4(body)
    if "user_id" not in body and isinstance(body.get("type"), str) and body["type"] in SEGMENT_TYPES:
        return _segment(body)
    return _own(body)


def _own(body: Mapping[str, Any]) -> ClickEvent:
    user = _user(body, "user_id")
    name = _name(body, "event")
    if name not in WIRE_EVENTS:
        raise _unknown(name, "a canonical event")
    return ClickEvent(
        user_id=user,
        event=name,
        timestamp=_in_range(_time_ms(body, "timestamp")),
        item_id=_text(body, "item_id"),
        category=_text(body, "category"),
        price=_price(body, "price"),
        message_id=_text(body, "message_id"),
    )


def _segment(body: Mapping[str, Any]) -> ClickEvent:
    user = _user(body, "userId", "anonymousId")
    name = SEGMENT_CALLS.get(body["type"])
    if name is None:
        sent = _name(body, "event") if body["type"] == "track" else f"a {body['type']} call"
        name = SEGMENT.get(sent.strip().lower())
        if name is None:
            raise _unknown(sent, "an event of Segment's e-commerce specification")
    properties = _object(body, "properties")
    product = _product(properties, "products", ("product_id", "sku"))
    return ClickEvent(
        user_id=user,
        event=name,
        timestamp=_in_range(_segment_time_ms(body)),
        item_id=_text(product, "product_id") or _text(product, "sku"),
        category=_text(product, "category") or _text(properties, "category"),
        price=_price(product, "price"),
        message_id=_text(body, "messageId"),
    )


def _segment_time_ms(body: Mapping[str, Any]) -> int:
    """Return receivedAt - (sentAt - originalTimestamp), the time on the receiver's clock, where all three are known."""
    if all(body.get(field) is not None for field in ("receivedAt", "sentAt", "originalTimestamp")):
        return _time_ms(body, "receivedAt") - (_time_ms(body, "sentAt") - _time_ms(body, "originalTimestamp"))
    return _time_ms(body, "originalTimestamp" if body.get("timestamp") is None else "timestamp")


def _ga4(body: Mapping[str, Any]) -> ClickEvent:
    user = _user(body, "user_id", "user_pseudo_id")
    sent = _name(body, "event_name")
    name = GA4.get(sent)
    if name is None:
        raise _unknown(sent, "an event of GA4's e-commerce set")
    product = _product(body, "items", ("item_id",))
    return ClickEvent(
        user_id=user,
        event=name,
        timestamp=_in_range(_integer(body, "event_timestamp") // 1000),  # microseconds
        item_id=_text(product, "item_id"),
        category=_text(product, "item_category"),
        price=_price(product, "price"),
        message_id=None,
    )


def _unknown(name: str, expected: str) -> DecodeError:
    return DecodeError(Reason.UNKNOWN_EVENT, f"{name[:80]!r} is not {expected}")


def _wrong(field: str, value: object, expected: str) -> DecodeError:
    return DecodeError(Reason.WRONG_TYPE, f"{field} is {type(value).__name__}, {expected} is expected")


def _user(body: Mapping[str, Any], *fields: str) -> str:
    """Return the first user id that is there."""
    for field in fields:
        user = _text(body, field, limit=None)
        if user is not None:
            return user
    raise DecodeError(Reason.MISSING_USER, f"no {' or '.join(fields)}")


def _name(body: Mapping[str, Any], field: str) -> str:
    name = body.get(field)
    if name is None:
        raise DecodeError(Reason.MISSING_FIELD, f"no {field}")
    if not isinstance(name, str):
        raise _wrong(field, name, "a string")
    return name


def _text(body: Mapping[str, Any], field: str, limit: int | None = MAX_TEXT) -> str | None:
    """Return an id as text; integers count as ids, an empty string as missing."""
    value = body.get(field)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if value is not None and not isinstance(value, str):
        raise _wrong(field, value, "a string")
    if limit is not None and value is not None and len(value) > limit:
        raise DecodeError(Reason.TOO_LONG, f"{field} has {len(value)} characters, at most {limit} are kept")
    return value or None


def _price(body: Mapping[str, Any], field: str) -> float | None:
    value = body.get(field)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(field, value, "a number")
    if not 0 <= value <= MAX_PRICE:
        raise DecodeError(Reason.OUT_OF_RANGE, f"{field} is not between 0 and {MAX_PRICE:.0f}")
    return float(value)


def _integer(body: Mapping[str, Any], field: str) -> int:
    """Return an integer, also one written as digits (exports write 64-bit integers as strings)."""
    value = body.get(field)
    if value is None:
        raise DecodeError(Reason.MISSING_FIELD, f"no {field}")
    if isinstance(value, str) and len(value) <= 20 and value.isascii() and value.isdigit():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong(field, value, "an integer")
    if abs(value) >= 1 << 63:
        raise DecodeError(Reason.OUT_OF_RANGE, f"{field} does not fit 64 bits")
    return value


def _time_ms(body: Mapping[str, Any], field: str) -> int:
    """Return a time given as integer milliseconds or as RFC 3339 with an offset."""
    value = body.get(field)
    if not isinstance(value, str) or not value:
        return _integer(body, field)
    try:
        time = msgspec.convert(value, datetime)
    except msgspec.ValidationError:
        raise DecodeError(Reason.WRONG_TYPE, f"{field} is neither milliseconds nor an RFC 3339 time") from None
    if time.tzinfo is None:
        raise DecodeError(Reason.WRONG_TYPE, f"{field} has no offset from UTC")
    return _milliseconds(time)


def _milliseconds(time: datetime) -> int:
    """Return milliseconds since the epoch, without the rounding of floats."""
    offset = time.utcoffset()
    assert offset is not None
    since = time.replace(tzinfo=None) - datetime(1970, 1, 1) - offset
    return (since.days * 86_400 + since.seconds) * 1000 + since.microseconds // 1000


def _in_range(timestamp: int) -> int:
    if not 0 < timestamp <= MAX_TIMESTAMP_MS:
        raise DecodeError(Reason.OUT_OF_RANGE, f"event time {timestamp} is not between 1 and {MAX_TIMESTAMP_MS}")
    return timestamp


def _object(body: Mapping[str, Any], field: str) -> Mapping[str, Any]:
    value = body.get(field)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _wrong(field, value, "an object")
    return value


def _product(body: Mapping[str, Any], field: str, ids: tuple[str, ...]) -> Mapping[str, Any]:
    """Return the first product of a list that has an id, else the first one, else the body itself."""
    products = body.get(field)
    if products is None or products == []:
        return body
    if not isinstance(products, list) or not all(isinstance(product, dict) for product in products):
        raise _wrong(field, products, "a list of objects")
    return next((product for product in products if any(product.get(name) for name in ids)), products[0])
