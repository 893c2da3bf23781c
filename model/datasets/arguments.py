"""The command-line options that name a log; shared by every command that reads one."""

import argparse
from pathlib import Path
from typing import Any

from model.datasets.formats import FIELDS, FORMATS, LogError
from model.datasets.log import WHERE_FIELDS, Log, LogOptions, read_log
from model.datasets.values import TimeUnit


def add_log_arguments(parser: argparse.ArgumentParser, option: str = "", why: str = "the event log") -> None:
    """Add the log and how to read it; `option` names it where a command can do without one."""
    add = parser.add_argument_group(why).add_argument
    more: dict[str, Any] = {"dest": "log"} if option else {}
    told = "a file (.gz too), or a directory whose files are read in order"
    add(option or "log", type=Path, metavar="LOG", help=told, **more)
    add("--format", default="auto", choices=FORMATS, help="default: recognised by the first line, else by the suffix")
    columns = f"its columns, as in user_id=customer,timestamp=time; fields: {', '.join(FIELDS)}"
    add("--map", default="", metavar="FIELD=COLUMN,...", help=columns)
    events = "its events, as in view=product_view,buy=order; * stands for anything: C*=refund,*=order"
    add("--events", default="", metavar="NAME=EVENT,...", help=events)
    where = f"only these rows; * stands for anything; may be given again; fields: {', '.join(WHERE_FIELDS)}"
    add("--where", action="append", default=[], metavar="FIELD=VALUE,...", help=where)
    sample = "only this share of the users, drawn by their names, as in 0.1 (default: all)"
    add("--sample", type=share, default=1.0, metavar="SHARE", help=sample)
    add("--time-unit", default="auto", choices=tuple(TimeUnit), help="how it writes time (default: detected)")
    add("--progress", action=argparse.BooleanOptionalAction, help="progress bar (default: on a terminal)")


def log_from_args(args: argparse.Namespace) -> Log:
    """Open the log that the arguments name.

    Raises:
        LogError: as `read_log`, and for pairs that are no pairs.
    """
    mapping, events = _pairs(args.map, "--map"), _pairs(args.events, "--events")
    unit, where = TimeUnit(args.time_unit), where_from(args.where)
    options = LogOptions(mapping, events, unit, args.progress, where, args.sample)
    return read_log(args.log, args.format, options)


def share(text: str) -> float:
    """Read a share of the users, above 0 and at most 1."""
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no share above 0 and up to 1")
    return value


def where_from(conditions: list[str]) -> dict[str, tuple[str, ...]]:
    """Read `field=value,value` conditions."""
    found = {}
    for condition in conditions:
        field, _, values = condition.partition("=")
        if field not in WHERE_FIELDS or not values:
            expected = f"FIELD=VALUE,... with a field of {', '.join(WHERE_FIELDS)}"
            raise LogError(f"--where is {condition!r}, expected {expected}: correct it.")
        found[field] = tuple(values.split(","))
    return found


def _pairs(text: str, option: str) -> dict[str, str]:
    """Read `a=b,c=d`."""
    parts = [part.partition("=") for part in text.split(",") if part]
    if wrong := ["".join(part) for part in parts if not all(part)]:
        raise LogError(f"{option} holds {wrong[0]!r}, expected pairs: write it as in {option} NAME=NAME,NAME=NAME.")
    return {left: right for left, _, right in parts}
