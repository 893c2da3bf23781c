"""Laws of logs with columns of their own, of the refusals and of the command line that names a log."""

import argparse
import gzip
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from model.contract.events import ClickEvent
from model.datasets import (
    LogError,
    LogOptions,
    Reason,
    TimeUnit,
    add_log_arguments,
    log_from_args,
    read_columns,
    read_log,
)
from tests.support.logs import clicks, is_accounted_for, write

EXCERPT = Path(__file__).parents[2] / "deploy" / "demo" / "clicks.csv.gz"
NOON = 1_511_582_400_000  # 2017-11-25 12:00 in Beijing, 04:00 UTC
MAPPING = {
    "user_id": "cust",
    "timestamp": "ts",
    "event": "kind",
    "item_id": "sku",
    "category": "cat",
    "price": "amount",
}
OWN = LogOptions(MAPPING, {"view": "product_view", "buy": "order"})


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_log_arguments(parser)
    return parser.parse_args(words)


def test_a_csv_log_is_read_by_its_column_mapping(tmp_path: Path) -> None:
    text = (
        "\ufeffcust,kind,ts,sku,cat,amount,note\r\n"
        'ann,view,1511582400000,"s,1",shoes,9.5,"said ""hi"""\r\n'
        "bob,buy,1511582400001,,,,\r\nbob,scroll,1511582400002,,,,\r\n"
    )
    log = read_log(write(tmp_path, text, "own.csv.gz"), "csv", OWN)
    assert list(log) == [
        (1, ClickEvent("ann", "product_view", NOON, "s,1", "shoes", 9.5)),
        (2, ClickEvent("bob", "order", NOON + 1)),
    ]
    assert log.problems.lines() == ["line 4: event without a mapping ('scroll')"]


@pytest.mark.parametrize("unit", ["auto", "given"])
@pytest.mark.parametrize(
    ("text", "given_unit"),
    [
        ("1511582400", "s"), ("1511582400.0", "s"), ("1511582400000", "ms"), ("2017-11-25T04:00:00Z", "iso"),
        ("2017-11-25 12:00:00+08:00", "iso"), ("2017-11-25 04:00:00.000", "iso"), ("2017-11-25", "iso"),
    ],
)  # fmt: skip
def test_the_time_unit_is_found_or_given(tmp_path: Path, text: str, given_unit: str, unit: str) -> None:
    options = LogOptions(time_unit=TimeUnit.AUTO if unit == "auto" else TimeUnit(given_unit))
    path = write(tmp_path, f"user_id,event,timestamp\nann,order,never\nann,order,{text}\n")
    midnight = NOON - 4 * 3_600_000
    assert [event.timestamp for _, event in read_log(path, "csv", options)] == [
        midnight if len(text) == 10 and "-" in text else NOON
    ]


def test_json_lines_with_broken_rows(tmp_path: Path) -> None:
    lines = [
        b'{"cust": 7, "kind": "view", "ts": 1511582400.5, "sku": 12.0, "cat": null, "amount": 3}',
        *(b"", b"[1]", b"{", b"[" * 100_000),
        b'{"cust": "\xff"}',
        b'{"cust": "ann", "kind": "buy", "ts": "1511582401", "sku": "x", "cat": "c"}',
        b'{"cust": true, "kind": "buy", "ts": 1511582400}',
        b'{"cust": "ann", "kind": ["buy"], "ts": 1511582400}',
        b'{"kind": "buy", "ts": 1511582400}',
        b'{"cust": "ann", "kind": "buy"}',
        b'{"cust": "ann", "kind": "buy", "ts": 1e300}',
        b'{"cust": "ann", "kind": "buy", "ts": 1511582400, "amount": 1e999}',
    ]
    log = read_log(write(tmp_path, b"\n".join(lines), "own.jsonl"), "auto", OWN)
    assert list(log) == [
        (0, ClickEvent("7", "product_view", NOON + 500, "12", None, 3.0)),
        (6, ClickEvent("ann", "order", NOON + 1000, "x", "c")),
    ]
    assert log.problems.counts == Counter({
        Reason.NOT_A_ROW: 5, Reason.INVALID_UTF8: 1, Reason.BAD_NAME: 2, Reason.MISSING_USER: 1, Reason.BAD_TIME: 1,
        Reason.OUT_OF_RANGE: 1,
    })  # fmt: skip
    assert is_accounted_for(log)


@pytest.mark.parametrize(
    "times",
    [
        pa.array([NOON * 1_000_000, NOON * 1_000_000 + 1], pa.timestamp("ns")),
        pa.array([NOON, NOON], pa.timestamp("ms", "Asia/Shanghai")),
        pa.array([NOON, NOON], pa.int64()),
        pa.array([NOON / 1000, NOON / 1000], pa.float64()),
        pa.array(["2017-11-25 04:00:00 UTC", "2017-11-25T04:00:00"]),
    ],
    ids=lambda times: str(times.type),
)
def test_parquet_is_read_whatever_the_type_of_its_times(tmp_path: Path, times: pa.Array) -> None:
    table = pa.table({
        "cust": pa.array([7, None]), "kind": pa.array(["view", "buy"]).dictionary_encode(), "ts": times,
        "sku": pa.array([1.0, float("nan")]), "cat": ["a", None], "amount": [1.5, float("nan")],
    })  # fmt: skip
    parquet.write_table(table, tmp_path / "own.parquet")
    log = read_log(tmp_path / "own.parquet", "parquet", OWN)
    assert list(log) == [(0, ClickEvent("7", "product_view", NOON, "1", "a", 1.5))]
    assert log.problems.counts == {Reason.MISSING_USER: 1}


def test_unmapped_columns_are_found_by_the_names_of_the_click_event(tmp_path: Path) -> None:
    text = "price,message_id,timestamp,event,user_id\n2,m1,1511582400,sign_up,ann\n"
    assert clicks(read_log(write(tmp_path, text))) == [ClickEvent("ann", "sign_up", NOON, None, None, 2.0, "m1")]


def test_event_names_may_be_patterns_and_an_exact_name_goes_before_them(tmp_path: Path) -> None:
    text = "user_id,event,timestamp\nann,536365,1\nann,C536366,2\nann,C0,3\nann,,4\n"
    log = read_log(write(tmp_path, text), "csv", LogOptions(events={"C*": "refund", "*": "order", "C0": "cart_remove"}))
    assert [event.event for _, event in log] == ["order", "refund", "cart_remove"]
    assert log.problems.counts == {Reason.MISSING_EVENT: 1}


@pytest.mark.parametrize("container", ["csv", "jsonl", "parquet"])
def test_where_every_row_is_an_order_no_column_need_say_so(tmp_path: Path, container: str) -> None:
    path = tmp_path / f"own.{container}"
    if container == "parquet":
        parquet.write_table(pa.table({"cust": [7, 8], "ts": [NOON, NOON + 1]}), path)
    else:
        rows = {"csv": f"cust,ts\n7,{NOON}\n8,{NOON + 1}\n", "jsonl": f'{{"cust": 7, "ts": {NOON}}}\n' * 2}
        path.write_text(rows[container])
    options = LogOptions({"user_id": "cust", "timestamp": "ts"}, {"*": "order"})
    assert [event.event for event in clicks(read_log(path, container, options))] == ["order"] * 2
    with pytest.raises(LogError, match=r"no column event, found cust, ts.* or say --events \*=order"):
        clicks(read_log(path, container, LogOptions(options.mapping)))


def test_a_sample_holds_whole_users_and_a_larger_one_holds_them_too(tmp_path: Path) -> None:
    rows = [f"u{user},order,{NOON + at}" for at in range(3) for user in range(400)]
    path = write(tmp_path, "\n".join(["user_id,event,timestamp", *rows]) + "\n")
    logs = {share: read_log(path, "csv", LogOptions(sample=share)) for share in (0.1, 0.5, 1.0)}
    users = {share: Counter(event.user_id for event in clicks(log)) for share, log in logs.items()}
    assert users[0.1].keys() < users[0.5].keys() < users[1.0].keys()
    assert set(users[0.5].values()) == {3}
    assert 20 <= len(users[0.1]) <= 65
    assert 150 <= len(users[0.5]) <= 250
    assert logs[0.1].problems.counts == {Reason.NOT_DRAWN: 1200 - 3 * len(users[0.1])}
    assert is_accounted_for(logs[0.1])


# ---- refusals


@pytest.mark.parametrize(
    ("name", "text", "fmt", "words"),
    [
        ("own.csv", "cust,event,timestamp\n", "csv", ["no column user_id", "found cust, event", "--map FIELD=COLUMN"]),
        ("own.jsonl", '{"cust": 1}\n', "jsonl", ["no column user_id, event, timestamp, found cust", "--map"]),
        ("log.csv", "a,b\n", "jdata", ["no column user_id, sku_id", "found a, b", "choose another --format"]),
        ("log.csv", "a,b,c\n1,2,3\n", "taobao", ["starts with 'a,b,c", "expected rows of user, item", "--format"]),
        ("log.parquet", "PAR?", "parquet", ["cannot be read", "expected a whole Parquet file", "--format"]),
        ("log.csv", "", "taubao", ["'taubao'", "auto, taobao, jdata", "--format"]),
    ],
)
def test_a_log_of_another_form_is_refused_in_one_sentence(
    tmp_path: Path, name: str, text: str, fmt: str, words: list[str]
) -> None:
    with pytest.raises(LogError) as refusal:
        clicks(read_log(write(tmp_path, text, name), fmt))
    assert all(word in str(refusal.value) for word in words), refusal.value
    assert "\n" not in str(refusal.value)


def test_a_missing_or_damaged_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="was not found, expected an event log"):
        read_log(tmp_path / "none.csv")
    with pytest.raises(LogError, match="holds no log"):
        read_log(tmp_path)
    path = tmp_path / "torn.csv.gz"
    path.write_bytes(gzip.compress(b"user_id,event,timestamp\n" + b"ann,order,1511582400\n" * 5000)[:-60])
    with pytest.raises(LogError, match=r"cannot be read to its end .* fetch it again"):
        clicks(read_log(path))


def test_a_log_without_any_event_gives_no_columns(tmp_path: Path) -> None:
    with pytest.raises(LogError, match=r"2 broken \(2 unreadable time\).*check --format"):
        read_columns(read_log(write(tmp_path, "user_id,event,timestamp\nann,order,x\nann,order,y\n")))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--map", "user=cust"], "names user, expected fields of a click event: user_id"),
        (["--map", "user_id"], "--map holds 'user_id', expected pairs"),
        (["--events", "view=look"], "leads to look, expected canonical events"),
        (["--format", "jdata", "--time-unit", "s"], "found --format jdata with --map, --events or --time-unit"),
    ],
)
def test_a_mapping_that_does_not_fit_is_refused(tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(LogError, match=message):
        log_from_args(arguments(str(write(tmp_path, "")), *words))


# ---- the command line and the progress bar


def test_the_command_line_names_log_and_mapping(tmp_path: Path) -> None:
    path = write(tmp_path, "cust,kind,ts\nann,buy,1511582400\n")
    mapping = ("--map", "user_id=cust,event=kind,timestamp=ts", "--events", "buy=order", "--time-unit", "s")
    assert clicks(log_from_args(arguments(str(path), *mapping))) == [ClickEvent("ann", "order", NOON)]
    assert clicks(log_from_args(arguments(str(path), *mapping, "--sample", "0.0001"))) == []
    with pytest.raises(SystemExit):
        arguments(str(path), "--sample", "1.5")


@pytest.mark.parametrize(("words", "is_drawn"), [(["--progress"], True), (["--no-progress"], False), ([], False)])
def test_the_progress_bar_counts_bytes_and_is_drawn_on_a_terminal_or_when_asked(
    capsys: pytest.CaptureFixture[str], words: list[str], is_drawn: bool
) -> None:
    clicks(log_from_args(arguments(str(EXCERPT), *words)))
    drawn = capsys.readouterr().err
    assert ("100%" in drawn and "clicks.csv.gz" in drawn) == is_drawn
