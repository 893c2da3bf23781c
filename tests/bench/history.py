"""What one event costs against the length of its user's history, 10 to 100,000 events, through the worker's own path.

Some users grow step by step; at each length their next events are taken in chunks of one event per user: columns, fold
with all features, table bytes, the plan of hot state, graph, pool, calibration. A sequence is re-based every 512
events once it holds 1,024: its next state is built ahead from up to 512 rows and fed those that came meanwhile, which
is measured with and apart. Not in it: JSON, Kafka, RocksDB. Times are CPU time of this process.
Progress is on stderr, the last line of stdout is one JSON object.

    python -m tests.bench.history [--lengths 10,1000,100000] [--repeats 3]     (about 2 minutes)
"""

from __future__ import annotations

import statistics
import time

from model.contract.rows import LMAX
from tests.bench.hotpath import HotPath, Spent, rounds
from tests.bench.measure import Figures, options, publish, say

PACKAGES = ("onnxruntime", "numpy", "numba")
FOLDED = 256  # clicks of each user in one chunk that is not scored
FIELDS = ("us_per_event", "us_per_event_rebasing_apart", "table_us_per_event", "network_us_per_event")


def grow(path: HotPath, users: int, first: int, last: int) -> None:
    """Bring the users from one length to another without asking for scores."""
    for begin in range(first, last, FOLDED):
        chunks = rounds(users, begin, min(FOLDED, last - begin))
        path.remember([event for chunk in chunks for event in chunk])


def at(path: HotPath, users: int, length: int) -> tuple[Figures, int]:
    """Return the cost at some length, and how many events of each user it took."""
    count = LMAX if length >= LMAX else max(4, length // 2)
    spent = [path.take(chunk) for chunk in rounds(users, length, count + 1)][1:]  # the first one rebuilds the state
    apart = [one for one in spent if not one.rebuilt]

    def us(chosen: list[Spent], *fields: str) -> float:
        total = sum(getattr(one, field) for one in chosen for field in fields)
        return round(total / (len(chosen) * users) * 1e6, 2)

    found = {
        "us_per_event": us(spent, "table", "network"),
        "us_per_event_rebasing_apart": us(apart, "table", "network"),
        "table_us_per_event": us(spent, "table"),
        "network_us_per_event": us(spent, "network"),
        "table_bytes_per_event": round(sum(one.bytes for one in spent) / (len(spent) * users)),
        "rebased": len(spent) - len(apart),
    }
    return found, count + 1


def one_repeat(lengths: list[int], users: int) -> list[Figures]:
    """Grow fresh users through all lengths."""
    path, reached, found = HotPath(2 * users), 0, []  # all are re-based at once
    for length in lengths:
        grow(path, users, reached, length)
        figures, taken = at(path, users, length)
        reached = length + taken
        found.append(figures)
    return found


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--lengths", type=lambda text: sorted(int(part) for part in text.split(",")),
                        default=[10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000], metavar="A,B",
                        help="events of history, each twice the one before or more (10 ... 100000)")  # fmt: skip
    parser.add_argument("--users", type=int, default=32, help="users in a chunk (default 32)")
    parser.add_argument("--repeats", type=int, default=3, help="populations of users (default 3)")
    args = parser.parse_args()
    if args.lengths[0] < 10 or any(2 * a > b for a, b in zip(args.lengths, args.lengths[1:], strict=False)):
        parser.error(f"--lengths are {args.lengths}, expected 10 or more, each at least twice the one before")
    if args.quick:
        args.lengths, args.repeats = [10, 100, 1000], 1
    started = time.monotonic()
    HotPath(1).take(next(rounds(1, 0, 1)))  # compiles
    repeats = []
    for repeat in range(args.repeats):
        repeats.append(one_repeat(args.lengths, args.users))
        say(f"{repeat + 1}/{args.repeats} {[one['us_per_event'] for one in repeats[-1]]} µs per event")
    figures = []
    for length, *same in zip(args.lengths, *repeats, strict=True):
        medians = {name: statistics.median(one[name] for one in same) for name in same[0]}
        spread = {f"{name}_min_max": [min(v), max(v)] for name in FIELDS for v in [[one[name] for one in same]]}
        figures.append({"history": length, **medians, **spread})
    includes = (
        f"columns, fold, table bytes, hot state; micro-batches of {args.users}, one event a user; no Kafka, no RocksDB"
    )
    ours = {"title": "Funnelcast, shipped model", "includes": includes, "figures": figures}
    minutes = round((time.monotonic() - started) / 60, 1)
    publish("history", args, PACKAGES, {"systems": {"funnelcast": ours}, "minutes": minutes})


if __name__ == "__main__":
    main()
