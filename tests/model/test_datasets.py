"""Laws of the loaders, on tiny literal logs of every format, on garbage, and on the real logs where they are there."""

import gzip
import importlib.util
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.contract.events import ClickEvent
from model.contract.sequence import Sequences, default_rules
from model.contract.vocabulary import name_hash
from model.datasets import LogOptions, Reason, event_time_order, read_columns, read_log
from model.datasets.columns import item_hashes
from tests.support.logs import clicks, is_accounted_for, write

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"
DEMO = ROOT / "deploy" / "demo"
NOON = 1_511_582_400_000  # 2017-11-25 12:00 in Beijing, 04:00 UTC


def shared(name: str) -> Path:
    if not (SHARED / name).exists():
        pytest.skip(f"the real log {name} is not in ../shared/data")
    return SHARED / name


@settings(deadline=None)  # the first call compiles
@given(st.lists(st.one_of(st.none(), st.text(max_size=12), st.text("09az_", min_size=1)), max_size=20))
def test_many_items_hash_as_each_alone(names: list[str | None]) -> None:
    assert item_hashes(names).tolist() == [name_hash(name) for name in names]
    plain = [name or "x" for name in names if (name or "x").isascii()]
    assert item_hashes(plain).tolist() == [name_hash(name) for name in plain]


# ---- public formats


def test_taobao_events_are_in_utc_and_days_outside_the_log_are_dropped_and_counted(tmp_path: Path) -> None:
    text = (
        "1,10,7,pv,1511582400\n1,11,7,fav,1511539199\n2,12,8,cart,1511539200\n"
        "2,12,8,buy,1512316799\n2,12,8,fav,1512316800\n"
    )
    log = read_log(write(tmp_path, text), "taobao")
    assert list(log) == [
        (0, ClickEvent("1", "product_view", NOON, "10", "7")),
        (2, ClickEvent("2", "cart_add", 1_511_539_200_000, "12", "8")),
        (3, ClickEvent("2", "order", 1_512_316_799_000, "12", "8")),
    ]
    assert log.problems.counts == {Reason.OUTSIDE_DAYS: 2}
    assert log.problems.first == []
    assert (
        log.summary() == "log.csv (taobao): 5 rows read: 3 events, 2 dropped (2 outside the days of the log), 0 broken."
    )


def test_a_broken_taobao_row_costs_itself_only_and_is_shown_with_its_line_number(tmp_path: Path) -> None:
    rows = [
        b"1,10,7,pv,1511582400", b"1,10,7,pv", b"1,10,7,look,1511582400", b",10,7,pv,1511582400", b"1,10,7,pv,noon",
        b"1,\xff,7,pv,1511582400", b"", b"1,10,7,,1511582400", b"1,10,7,fav,99999999999999", b"1,,,fav,1511582400",
    ]  # fmt: skip
    log = read_log(write(tmp_path, b"\n".join(rows) + b"\n"), "taobao")
    assert clicks(log) == [ClickEvent("1", "product_view", NOON, "10", "7"), ClickEvent("1", "wishlist_add", NOON)]
    assert log.problems.counts == Counter({
        Reason.NOT_A_ROW: 2, Reason.UNMAPPED_EVENT: 1, Reason.MISSING_USER: 1, Reason.BAD_TIME: 1,
        Reason.INVALID_UTF8: 1, Reason.MISSING_EVENT: 1, Reason.OUT_OF_RANGE: 1,
    })  # fmt: skip
    assert (log.problems.dropped, log.problems.broken) == (1, 7)
    assert log.problems.lines() == [
        "line 2: not a row of the log (4 columns, expected 5)",
        "line 7: not a row of the log (0 columns, expected 5)",
        "line 3: event without a mapping ('look')",
        "line 4: missing user",
        "line 5: unreadable time ('noon' is not a number)",
    ]
    assert is_accounted_for(log)


def test_jdata_drops_exact_duplicates_in_any_order_and_counts_them(tmp_path: Path) -> None:
    header = "user_id,sku_id,time,model_id,type,cate,brand\n"
    row, other = "200719.0,61226,2016-01-31 23:59:07,,1,8,30\n", "200719.0,61226,2016-01-31 23:59:07,0,6,8,30\n"
    log = read_log(write(tmp_path, header + row + other + row + other + row), "jdata")
    time = 1_454_255_947_000  # 15:59:07 UTC
    assert list(log) == [
        (1, ClickEvent("200719", "product_view", time, "61226", "8")),
        (2, ClickEvent("200719", "click", time, "61226", "8")),
    ]
    assert log.problems.counts == {Reason.DUPLICATE: 3}
    assert is_accounted_for(log)


def test_every_jdata_type_code_is_an_event(tmp_path: Path) -> None:
    rows = "".join(f"1.0,2,2016-01-31 23:59:07,,{code},8,30\n" for code in range(1, 7))
    log = read_log(write(tmp_path, f"user_id,sku_id,time,model_id,type,cate,brand\n{rows}"))
    expected = ["product_view", "cart_add", "cart_remove", "order", "wishlist_add", "click"]
    assert [click.event for click in clicks(log)] == expected


def test_retailrocket_rows_become_events(tmp_path: Path) -> None:
    text = (
        "timestamp,visitorid,event,itemid,transactionid\n1433221332117,257597,view,355908,\n"
        "1433224214164,992329,addtocart,248676,\n1433222276276,599528,transaction,356475,4000\n"
    )
    assert list(read_log(write(tmp_path, text, "events.csv.gz"), "retailrocket")) == [
        (1, ClickEvent("257597", "product_view", 1_433_221_332_117, "355908")),
        (2, ClickEvent("992329", "cart_add", 1_433_224_214_164, "248676")),
        (3, ClickEvent("599528", "order", 1_433_222_276_276, "356475")),
    ]


def test_rees46_rows_become_events_with_price_and_category(tmp_path: Path) -> None:
    head = "event_time,event_type,product_id,category_id,category_code,brand,price,user_id,user_session\n"
    rows = (
        "2019-10-01 00:00:00 UTC,view,44600062,2103807459595387724,,shiseido,35.79,541312140,72d7\n"
        "2019-10-01 00:00:01 UTC,remove_from_cart,3900821,2053013552326770905,appliances,aqua,,554748717,9333\n"
        "2019-10-01 00:00:02 UTC,purchase,3900821,2053013552326770905,appliances,aqua,0.0,554748717,9333\n"
        "2019-10-01 00:00:02 UTC,cart,3900821,2053013552326770905,appliances,aqua,-1,554748717,9333\n"
        "2019-10-01 00:00:02 UTC,cart,3900821,2053013552326770905,appliances,aqua,cheap,554748717,9333\n"
    )
    log = read_log(write(tmp_path, head + rows), "rees46")
    assert clicks(log) == [
        ClickEvent("541312140", "product_view", 1_569_888_000_000, "44600062", "2103807459595387724", 35.79),
        ClickEvent("554748717", "cart_remove", 1_569_888_001_000, "3900821", "2053013552326770905"),
        ClickEvent("554748717", "order", 1_569_888_002_000, "3900821", "2053013552326770905", 0.0),
    ]
    assert log.problems.counts == {Reason.OUT_OF_RANGE: 1, Reason.BAD_PRICE: 1}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("1,10,7,pv,1511582400\n", "taobao"),
        ("user_id,sku_id,time,model_id,type,cate,brand\n", "jdata"),
        ("timestamp,visitorid,event,itemid,transactionid\n", "retailrocket"),
        ("event_time,event_type,product_id,category_id,category_code,brand,price,user_id,user_session\n", "rees46"),
        ("user_id,event,timestamp\n", "csv"),
    ],
)
def test_a_public_log_is_recognised_by_its_first_line(tmp_path: Path, text: str, name: str) -> None:
    assert read_log(write(tmp_path, text)).form.name == name


# ---- any log


def test_a_directory_is_one_log_with_rows_counted_on(tmp_path: Path) -> None:
    write(tmp_path, "user_id,event,timestamp\nbob,order,1511582402\n", "b.csv.gz")
    write(tmp_path, "user_id,event,timestamp\nann,order,1511582400\nann,order,x\n", "a.csv")
    write(tmp_path, "no log", "README.md")
    log = read_log(tmp_path)
    assert [(row, event.user_id) for row, event in log] == [(1, "ann"), (4, "bob")]
    assert log.problems.lines() == ["line 3: unreadable time ('x' is not a number)"]
    assert log.problems.read == 3


def test_a_stray_quote_costs_its_own_line_only(tmp_path: Path) -> None:
    lines = ["user_id,event,timestamp,item_id", *["ann,order,1511582400,5"] * 9]
    lines[3] = 'ann,order,1511582400,"27 inch'
    log = read_log(write(tmp_path, "\n".join(lines)))
    assert [row for row, _ in log] == [1, 2, 4, 5, 6, 7, 8, 9]
    assert log.problems.counts == {Reason.NOT_A_ROW: 1}


def test_reading_again_renews_the_account(tmp_path: Path) -> None:
    log = read_log(write(tmp_path, "user_id,event,timestamp\nann,order,1511582400\nann,order,x\n"))
    assert clicks(log) == clicks(log)
    assert (log.problems.read, log.problems.yielded, log.problems.broken) == (2, 1, 1)


FIELD = st.one_of(
    st.sampled_from(["pv", "buy", "1", "1511582400", "1511582401", "", '"', "é", "nan", "-5", "1e9", "x" * 50]),
    st.text(st.characters(codec="utf-8", exclude_characters="\n\r"), max_size=6),
)
ROW = st.one_of(st.lists(FIELD, min_size=5, max_size=5), st.lists(FIELD, max_size=7)).map(
    lambda row: ",".join(row).encode()
)
GARBAGE = st.lists(st.one_of(ROW, st.binary(max_size=20)), max_size=12).map(b"\n".join)


@settings(deadline=None)  # the disk of a shared machine
@given(garbage=GARBAGE)
def test_every_row_read_is_yielded_dropped_or_broken(tmp_path_factory: pytest.TempPathFactory, garbage: bytes) -> None:
    data = b"1,10,7,pv,1511582400\n" + garbage
    log = read_log(write(tmp_path_factory.mktemp("garbage"), data), "taobao")
    events = clicks(log)
    assert events[0] == ClickEvent("1", "product_view", NOON, "10", "7")
    assert len(events) == log.problems.yielded
    lines = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").removesuffix(b"\n").split(b"\n")
    assert log.problems.read == len(lines)
    assert is_accounted_for(log)


@settings(deadline=None)  # the disk of a shared machine
@given(lines=st.lists(st.binary(max_size=30).map(lambda line: line.replace(b"\n", b"")), max_size=8))
def test_every_json_line_is_yielded_or_broken(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]) -> None:
    sound = b'{"user_id": "ann", "event": "order", "timestamp": 1511582400}'
    log = read_log(write(tmp_path_factory.mktemp("garbage"), b"\n".join([sound, *lines, sound]), "own.jsonl"))
    assert len(clicks(log)) == log.problems.yielded >= 2
    assert log.problems.read == len(lines) + 2
    assert is_accounted_for(log)


# ---- columns


def test_columns_are_what_the_worker_makes_of_the_same_events(tmp_path: Path) -> None:
    text = (
        "user_id,event,timestamp,item_id,category,price,message_id\nbob,order,1511582402,i,c,9.5,m\n"
        "ann,search,1511582400,,,,\nbob,order,x,i,c,,\nbob,refund,1511582401,é,c,0,\n"
    )
    log = read_log(write(tmp_path, text))
    columns, events = read_columns(log), clicks(log)
    sequences = Sequences(default_rules())
    expected = sequences.columns(events, [event.user_id.encode() for event in events])
    for name in ("ts", "type", "item", "category", "price", "id"):
        assert np.array_equal(getattr(columns, name), getattr(expected, name)), name
        assert getattr(columns, name).dtype == getattr(expected, name).dtype
    assert [columns.users[code] for code in columns.user] == ["bob", "ann", "bob"]
    assert columns.row.tolist() == [1, 2, 4]
    assert {code: name.encode() for code, name in columns.categories.items()} == sequences.names


def test_event_time_order_keeps_rows_of_one_time_in_the_order_of_the_source(tmp_path: Path) -> None:
    rows = "\n".join(f"ann,order,151158240{second}" for second in (3, 1, 3, 1, 2))
    columns = read_columns(read_log(write(tmp_path, f"user_id,event,timestamp\n{rows}\n")))
    assert event_time_order(columns).tolist() == [1, 3, 4, 0, 2]


# ---- real logs


def test_the_excerpt_holds_whole_journeys_of_at_most_100_users() -> None:
    log = read_log(DEMO / "clicks.csv.gz", "taobao")
    events = clicks(log)
    assert len({event.user_id for event in events}) == 100
    assert 8_000 <= len(events) == log.problems.read <= 12_000
    assert Counter(event.event for event in events)["order"] > 200


def test_the_excerpt_is_made_again_byte_for_byte(tmp_path: Path) -> None:
    source = shared("taobao/UserBehavior.csv.gz")
    spec = importlib.util.spec_from_file_location("make_excerpt", DEMO / "make_excerpt.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.make(source, tmp_path / "clicks.csv.gz")
    assert (tmp_path / "clicks.csv.gz").read_bytes() == (DEMO / "clicks.csv.gz").read_bytes()


def test_the_real_taobao_log_is_read_whole() -> None:
    log = read_log(shared("taobao/UserBehavior.csv.gz"))
    columns = read_columns(log)
    assert (log.problems.read, log.problems.yielded) == (63_701, 63_676)
    assert log.problems.counts == {Reason.OUTSIDE_DAYS: 25}
    assert len(columns.users) == 621


def test_the_real_jdata_log_loses_its_exact_duplicates_only() -> None:
    path = shared("jdata")
    rows = [line for file in sorted(path.glob("*.gz")) for line in gzip.open(file, "rt").read().splitlines()[1:]]
    log = read_log(path)
    assert len(clicks(log)) == len(set(rows))
    assert log.problems.counts == {Reason.DUPLICATE: len(rows) - len(set(rows))}


def test_where_keeps_the_rows_whose_field_matches_and_counts_the_others(tmp_path: Path) -> None:
    path = write(
        tmp_path, "user_id,event,timestamp,category\na,click,1000,41\nb,click,2000,5\nc,order,3000,4\nd,click,4000,\n"
    )
    log = read_log(path, options=LogOptions(where={"category": ("4*", "5"), "event": ("click",)}))
    assert [event.user_id for event in clicks(log)] == ["a", "b"]
    assert log.problems.counts == {Reason.LEFT_OUT: 2}
    assert is_accounted_for(log)
