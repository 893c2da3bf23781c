"""Make clicks.csv.gz, the excerpt of real clicks: all clicks of 100 users of the Taobao log, in its order and form.

Usage: python deploy/demo/make_excerpt.py UserBehavior.csv.gz [clicks.csv.gz]
Users are taken from four kinds of journey, in each kind by the crc32 of their id: the same log gives the same bytes.
"""

import argparse
import gzip
import zlib
from collections import Counter, defaultdict
from pathlib import Path

from model.datasets import Log, read_log

USERS = {"bought more than once": 40, "bought once": 25, "filled a cart or a list": 25, "only looked": 10}


def journey(events: Counter[str]) -> str:
    """Name the kind of a user's journey."""
    if events["order"]:
        return "bought more than once" if events["order"] > 1 else "bought once"
    return "filled a cart or a list" if events["cart_add"] or events["wishlist_add"] else "only looked"


def choose(log: Log) -> set[int]:
    """Choose the users of the excerpt; return the rows of the log that are theirs."""
    events: defaultdict[str, Counter[str]] = defaultdict(Counter)
    rows: defaultdict[str, list[int]] = defaultdict(list)
    for row, event in log:
        events[event.user_id][event.event] += 1
        rows[event.user_id].append(row)
    kinds: defaultdict[str, list[str]] = defaultdict(list)
    for user in sorted(events, key=lambda user: (zlib.crc32(user.encode()), user)):
        kinds[journey(events[user])].append(user)
    return {row for kind, count in USERS.items() for user in kinds[kind][:count] for row in rows[user]}


def make(source: Path, excerpt: Path) -> int:
    """Write the excerpt; return the number of its clicks."""
    rows = choose(read_log(source, "taobao"))
    with gzip.open(source) as lines:
        kept = [line for row, line in enumerate(lines) if row in rows]
    excerpt.write_bytes(gzip.compress(b"".join(kept), mtime=0))
    return len(kept)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", type=Path)
    parser.add_argument("excerpt", type=Path, nargs="?", default=Path(__file__).with_name("clicks.csv.gz"))
    args = parser.parse_args()
    print(f"{args.excerpt}: {make(args.log, args.excerpt):,} clicks")
