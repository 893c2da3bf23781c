"""Canonical event types, their codes and feature classes, and the decoded click event that enters the reducer."""

from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt

TYPES = (
    "pad", "unknown", "page_view", "search", "list_view", "promotion_view", "click", "product_view", "wishlist_add",
    "cart_add", "cart_remove", "cart_view", "checkout_start", "checkout_step", "order", "refund", "share", "review",
    "sign_up", "session_end",
)  # fmt: skip
N_TYPES = len(TYPES)
TYPE_CODE: dict[str, int] = {name: code for code, name in enumerate(TYPES)}
PAD, UNKNOWN = TYPE_CODE["pad"], TYPE_CODE["unknown"]
CART_ADD, CART_REMOVE, ORDER_TYPE = TYPE_CODE["cart_add"], TYPE_CODE["cart_remove"], TYPE_CODE["order"]
SESSION_END = TYPE_CODE["session_end"]
WIRE_TYPES = TYPES[2:SESSION_END]  # what a producer may send

CLASSES = ("browse", "view", "search", "wishlist", "cart", "checkout", "order", "session")
N_CLASSES = len(CLASSES)
BROWSE, VIEW, SEARCH, WISHLIST, CART, CHECKOUT, ORDER, SESSION = range(N_CLASSES)
_CLASS_OF_TYPE = {
    "product_view": VIEW, "search": SEARCH, "wishlist_add": WISHLIST, "cart_add": CART, "cart_view": CHECKOUT,
    "checkout_start": CHECKOUT, "checkout_step": CHECKOUT, "order": ORDER, "session_end": SESSION,
}  # fmt: skip
CLASS_OF: npt.NDArray[Any] = np.array([_CLASS_OF_TYPE.get(name, BROWSE) for name in TYPES], np.uint8)

MAX_TIMESTAMP_MS = (1 << 43) - 1


class ClickEvent(msgspec.Struct, gc=False):
    """One decoded click of one user; the event is a canonical wire type."""

    user_id: str
    event: str
    timestamp: Annotated[int, msgspec.Meta(gt=0, le=MAX_TIMESTAMP_MS)]
    item_id: str | None = None
    category: str | None = None
    price: Annotated[float, msgspec.Meta(ge=0)] | None = None
    message_id: str | None = None
