"""Segment and GA4 calls become canonical events, by the tables of the documentation."""

from __future__ import annotations

import json
from typing import Any

import pytest

from model.contract.events import ClickEvent
from worker.decode import Bounds, DecodeError, Reason, decode

ARRIVAL_MS = 1_511_600_000_000
TIME_MS = 1_511_544_070_000
TIME = "2017-11-24T17:21:10Z"


def read(body: dict[str, Any], key: bytes = b"u1") -> ClickEvent:
    return decode(key, json.dumps(body).encode(), ARRIVAL_MS, Bounds())


def track(event: str, properties: Any = None, **fields: Any) -> dict[str, Any]:
    base = {"type": "track", "event": event, "userId": "u1", "messageId": "m1", "timestamp": TIME}
    return {**base, "properties": properties or {}, **fields}


def ga4(name: str, **fields: Any) -> dict[str, Any]:
    return {"event_name": name, "user_id": "u1", "event_timestamp": TIME_MS * 1000, **fields}


def refusal(body: dict[str, Any]) -> Reason:
    with pytest.raises(DecodeError) as refused:
        read(body)
    return refused.value.reason


SEGMENT_TABLE = {
    "search": ["Products Searched"],
    "list_view": ["Product List Viewed", "Product List Filtered", "Viewed Product Category"],
    "promotion_view": ["Promotion Viewed", "Viewed Promotion"],
    "click": ["Product Clicked", "Promotion Clicked", "Clicked Product", "Clicked Promotion"],
    "product_view": ["Product Viewed", "Viewed Product", "product viewed"],
    "wishlist_add": ["Product Added to Wishlist"],
    "cart_add": ["Product Added", "Wishlist Product Added to Cart", "Added Product"],
    "cart_remove": ["Product Removed", "Removed Product"],
    "cart_view": ["Cart Viewed"],
    "checkout_start": ["Checkout Started", "Started Order"],
    "checkout_step": ["Checkout Step Viewed", "Checkout Step Completed", "Payment Info Entered"],
    "order": ["Order Completed", "Completed Order"],
    "refund": ["Order Refunded", "Order Cancelled"],
    "share": ["Product Shared", "Cart Shared"],
    "review": ["Product Reviewed"],
    "sign_up": ["Signed Up"],
}
GA4_TABLE = {
    "page_view": ["page_view"],
    "search": ["search", "view_search_results"],
    "list_view": ["view_item_list"],
    "promotion_view": ["view_promotion"],
    "click": ["select_item", "select_promotion"],
    "product_view": ["view_item"],
    "wishlist_add": ["add_to_wishlist"],
    "cart_add": ["add_to_cart"],
    "cart_remove": ["remove_from_cart"],
    "cart_view": ["view_cart"],
    "checkout_start": ["begin_checkout"],
    "checkout_step": ["add_shipping_info", "add_payment_info"],
    "order": ["purchase"],
    "refund": ["refund"],
    "share": ["share"],
    "sign_up": ["sign_up", "login", "generate_lead"],
}


@pytest.mark.parametrize(
    ("name", "sent"), [(name, sent) for name, all_sent in SEGMENT_TABLE.items() for sent in all_sent]
)
def test_segment_events_follow_the_table(name: str, sent: str) -> None:
    assert read(track(sent)).event == name


@pytest.mark.parametrize(("name", "sent"), [(name, sent) for name, all_sent in GA4_TABLE.items() for sent in all_sent])
def test_ga4_events_follow_the_table(name: str, sent: str) -> None:
    assert read(ga4(sent)).event == name


@pytest.mark.parametrize(("call", "name"), [("page", "page_view"), ("identify", "sign_up")])
def test_segment_calls_without_event_name_are_events_too(call: str, name: str) -> None:
    body = {"type": call, "anonymousId": "u1", "timestamp": TIME}
    assert read(body) == ClickEvent("u1", name, TIME_MS)


def test_a_segment_product_is_read_from_its_properties() -> None:
    properties = {"product_id": "i1", "sku": "s1", "category": "c1", "price": 9.5, "quantity": 2}
    expected = ClickEvent("u1", "product_view", TIME_MS, "i1", "c1", 9.5, "m1")
    assert read(track("Product Viewed", properties)) == expected
    assert read(track("Product Viewed", {"sku": "s1"})).item_id == "s1"


def test_of_several_products_the_first_one_with_an_id_stands_for_the_event() -> None:
    products = [{"name": "no id"}, {"product_id": "i2", "category": "c2", "price": 2}, {"product_id": "i3"}]
    event = read(track("Order Completed", {"products": products, "category": "c0", "product_id": "i0"}))
    assert (event.item_id, event.category, event.price) == ("i2", "c2", 2.0)
    event = read(track("Order Completed", {"products": [{"category": "c1"}], "category": "c0"}))
    assert (event.item_id, event.category) == (None, "c1")
    assert read(ga4("purchase", items=[{}, {"item_id": 5, "item_category": "c"}])).item_id == "5"
    assert read(ga4("purchase", items=[])).item_id is None


def test_segment_time_is_corrected_for_a_wrong_client_clock() -> None:
    a_day_slow = {"originalTimestamp": "2017-11-23T17:21:09Z", "sentAt": "2017-11-23T17:21:19Z"}
    body = track("Product Viewed", receivedAt="2017-11-24T17:21:20Z", **a_day_slow)
    assert read(body).timestamp == TIME_MS
    del body["sentAt"]
    assert read(body).timestamp == TIME_MS  # Segment's own corrected time
    del body["timestamp"]
    assert read(body).timestamp == TIME_MS - 86_400_000 - 1000


def test_ga4_time_is_in_microseconds_and_may_be_digits() -> None:
    assert read(ga4("view_item", event_timestamp=f"{TIME_MS}999")).timestamp == TIME_MS
    assert refusal(ga4("view_item", event_timestamp=TIME)) == Reason.WRONG_TYPE
    assert refusal(ga4("view_item", event_timestamp=999)) == Reason.OUT_OF_RANGE


def test_a_known_user_comes_before_an_anonymous_one() -> None:
    assert read(track("Cart Viewed", anonymousId="a1")).user_id == "u1"
    assert read(ga4("view_cart", user_pseudo_id="a1")).user_id == "u1"
    assert read(ga4("view_cart", user_id="", user_pseudo_id="a1"), key=b"a1").user_id == "a1"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (track("Coupon Entered"), Reason.UNKNOWN_EVENT),
        (track(""), Reason.UNKNOWN_EVENT),
        ({"type": "screen", "userId": "u1", "timestamp": TIME}, Reason.UNKNOWN_EVENT),
        (track("Cart Viewed", userId=None), Reason.MISSING_USER),
        (track("Cart Viewed", timestamp=None), Reason.MISSING_FIELD),
        ({"type": "track", "userId": "u1"}, Reason.MISSING_FIELD),
        (track("Cart Viewed", properties=[1]), Reason.WRONG_TYPE),
        (track("Order Completed", {"products": "none"}), Reason.WRONG_TYPE),
        (track("Order Completed", {"products": [1]}), Reason.WRONG_TYPE),
        (track("Product Viewed", {"price": "9.5"}), Reason.WRONG_TYPE),
        (track("Cart Viewed", sentAt="x", receivedAt=TIME, originalTimestamp=TIME), Reason.WRONG_TYPE),
        (ga4("first_visit"), Reason.UNKNOWN_EVENT),
        (ga4("purchase", user_id=None), Reason.MISSING_USER),
        (ga4("purchase", items={}), Reason.WRONG_TYPE),
        (ga4("purchase", event_timestamp=None), Reason.MISSING_FIELD),
        (ga4("purchase", event_timestamp=1 << 70), Reason.OUT_OF_RANGE),
    ],
)
def test_each_fault_of_an_envelope_has_its_reason(body: dict[str, Any], reason: Reason) -> None:
    assert refusal(body) == reason
