"""Options that several commands share: what a value must be, told before anything is read."""

import argparse
import math
from collections.abc import Callable
from datetime import UTC, datetime


def at_least(least: int) -> Callable[[str], int]:
    """Return argparse's type of whole numbers from `least` up."""

    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{value} is less than {least}")
        return value

    return number


def hours(text: str) -> float:
    """Read a number of hours above 0, whole or not."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no number of hours above 0")
    return value


def moment(text: str) -> int:
    """Read a day or a time of ISO 8601, UTC where it names no zone, as milliseconds."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no time such as 2026-01-31 or 2026-01-31T18:00") from None
    return int((time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp() * 1000)
