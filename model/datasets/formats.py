"""The formats as data: which column is which field, which event name is which canonical event, how time is written.

In: a format name, or the first line of a file where the name is `auto`. Out: a `Format`, or one sentence why not.
"""

from enum import StrEnum

import msgspec

from model.contract.errors import FunnelcastError
from model.contract.events import WIRE_TYPES
from model.datasets import values
from model.datasets.values import Reader, TimeUnit

REQUIRED = ("user_id", "event", "timestamp")
FIELDS = (*REQUIRED, "item_id", "category", "price", "message_id")
EVERY = "*"  # alone among the event names: each row is this event, and no column need say so
BEIJING_MS = 8 * 3_600_000


class LogError(FunnelcastError):
    """A log that cannot be read as asked."""


class Container(StrEnum):
    """How rows lie in a file."""

    CSV = "csv"
    JSON_LINES = "jsonl"
    PARQUET = "parquet"


class Format(msgspec.Struct, frozen=True):
    """One log format: columns and event names by their meaning, and the rules that drop rows."""

    name: str
    columns: dict[str, str]  # field of the click event -> column of the log
    events: dict[str, str] = {}  # event name or pattern of the log -> canonical event; none: the names are canonical
    container: Container = Container.CSV
    header: tuple[str, ...] = ()  # the column names of a file without a header line
    time: TimeUnit = TimeUnit.AUTO
    utc_offset_ms: int = 0
    days_ms: tuple[int, int] | None = None  # event times of the log: from, to (exclusive)
    unique: bool = False  # exact duplicates are dropped
    optional: frozenset[str] = frozenset()  # fields whose column may be missing
    users: Reader[str] = values.USERS


TAOBAO = Format(
    "taobao",
    {"user_id": "user", "item_id": "item", "category": "category", "event": "behaviour", "timestamp": "time"},
    {"pv": "product_view", "cart": "cart_add", "fav": "wishlist_add", "buy": "order"},
    header=("user", "item", "category", "behaviour", "time"),
    time=TimeUnit.SECONDS,
    days_ms=(1_511_539_200_000, 1_512_316_800_000),  # 2017-11-25 to 2017-12-03, Beijing time
)
JDATA = Format(
    "jdata",
    {"user_id": "user_id", "item_id": "sku_id", "category": "cate", "event": "type", "timestamp": "time"},
    {"1": "product_view", "2": "cart_add", "3": "cart_remove", "4": "order", "5": "wishlist_add", "6": "click"},
    time=TimeUnit.ISO,
    utc_offset_ms=BEIJING_MS,
    unique=True,
    users=values.float_users(),
)
RETAILROCKET = Format(
    "retailrocket",
    {"user_id": "visitorid", "item_id": "itemid", "event": "event", "timestamp": "timestamp"},
    {"view": "product_view", "addtocart": "cart_add", "transaction": "order"},
    time=TimeUnit.MILLISECONDS,
)
REES46 = Format(
    "rees46",
    {
        "user_id": "user_id", "item_id": "product_id", "category": "category_id", "price": "price",
        "event": "event_type", "timestamp": "event_time",
    },
    {"view": "product_view", "cart": "cart_add", "remove_from_cart": "cart_remove", "purchase": "order"},
    time=TimeUnit.ISO,
)  # fmt: skip
SHOPS = (TAOBAO, JDATA, RETAILROCKET, REES46)
FORMATS = ("auto", *(shop.name for shop in SHOPS), *Container)


def generic(container: Container, mapping: dict[str, str], events: dict[str, str], time: TimeUnit) -> Format:
    """Make the format of a log with columns of its own; a field without a mapping is the column of its own name."""
    if unknown := sorted(set(mapping) - set(FIELDS)):
        raise LogError(f"the column mapping names {_list(unknown)}, expected fields of a click event: {_list(FIELDS)}.")
    if unknown := sorted(set(events.values()) - set(WIRE_TYPES)):
        raise LogError(f"the event mapping leads to {_list(unknown)}, expected canonical events: {_list(WIRE_TYPES)}.")
    columns = {field: mapping.get(field, field) for field in FIELDS}
    required = REQUIRED if set(events) != {EVERY} else tuple(field for field in REQUIRED if field != "event")
    optional = frozenset(FIELDS) - set(required) - set(mapping)
    return Format(container.value, columns, events, container, time=time, optional=optional)


def named(name: str) -> Format | None:
    """Return the format of a public log by its name; None for a generic one."""
    return next((shop for shop in SHOPS if shop.name == name), None)


def recognised(fields: list[str]) -> Format | None:
    """Recognise a public log by the fields of its first line; None for a log with columns of its own."""
    headed = next((shop for shop in SHOPS if not shop.header and set(shop.columns.values()) <= set(fields)), None)
    if headed:
        return headed
    is_taobao = len(fields) == len(TAOBAO.header) and fields[3] in TAOBAO.events and fields[4].isdecimal()
    return TAOBAO if is_taobao else None


def found_columns(form: Format, names: list[str], place: str) -> dict[str, str]:
    """Return field -> column for the fields that the log has.

    Raises:
        LogError: a needed column is missing; the sentence names it, what was found and the remedy.
    """
    missing = [column for field, column in form.columns.items() if column not in names and field not in form.optional]
    if missing:
        remedy = "choose another --format" if named(form.name) else "name the columns with --map FIELD=COLUMN,..."
        if missing == ["event"]:
            remedy += f", or say --events {EVERY}=order if every row is an order"
        expected = f"expected {_list(list(form.columns.values()))} ({form.name})"
        raise LogError(f"{place} has no column {_list(missing)}, found {_list(names)}, {expected}: {remedy}.")
    return {field: column for field, column in form.columns.items() if column in names}


def _list(names: list[str] | tuple[str, ...]) -> str:
    return ", ".join(names)
