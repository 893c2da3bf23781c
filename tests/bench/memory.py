"""Resident memory against the number of users whose hot state is kept: one fresh process per size of the pool.

Each fills its pool through the worker's own path: every user gets some clicks and one score, which installs its whole
state. Measured are the process before any user, with the users' sequences, and with their hot states. Not in it:
Kafka's clients, RocksDB and the campaigns, which the latency benchmark's worker has (its rss_mb).
Progress is on stderr, the last line of stdout is one JSON object.

    python -m tests.bench.memory [--mib 64,256,1024]     (about 1 minute)
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time

import psutil

from tests.bench.hotpath import HotPath, rounds
from tests.bench.measure import ROOT, Figures, Unable, options, publish, say

PACKAGES = ("onnxruntime", "numpy", "numba")
USERS = 64  # of one chunk, as many as close a micro-batch


def one(mib: int, rows: int) -> Figures:
    """Fill a pool in this process."""
    small = HotPath(1)
    state = small.state
    assert state is not None
    users = (mib << 20) // state.bytes
    path = HotPath(max(1, users))
    for chunk in rounds(USERS, 0, rows):  # what compiling and the graphs' own buffers take is no user's
        small.take(chunk)
    before, memory = rss(), {}
    groups = [f"g{number}-" for number in range(users // USERS)]
    for group in groups:
        path.remember([event for chunk in rounds(USERS, 0, rows - 1, group) for event in chunk])
    memory["sequences"] = rss() - before
    for group in groups:
        for chunk in rounds(USERS, rows - 1, 1, group):
            path.take(chunk)
    memory["hot_states"] = rss() - before - memory["sequences"]
    return {
        "pool_mib": mib,
        "users": len(groups) * USERS,
        "rows_per_user": rows,
        "rss_mb": round(rss() / 1e6),
        "rss_mb_without_users": round(before / 1e6),
        "sequences_kib_per_user": per_user(memory["sequences"], groups),
        "hot_state_kib_per_user": per_user(memory["hot_states"], groups),
        "state_bytes": state.bytes,
    }


def per_user(size: int, groups: list[str]) -> float | None:
    return round(size / (len(groups) * USERS) / 1024, 1) if groups else None


def rss() -> int:
    return int(psutil.Process().memory_info().rss)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--mib", type=lambda text: [int(part) for part in text.split(",")],
                        default=[0, 64, 128, 256, 512, 1024, 2048], metavar="A",
                        help="sizes of the pool in MiB (default 0,64 ... 2048)")  # fmt: skip
    parser.add_argument("--rows", type=int, default=64, help="clicks of each user (default 64)")
    parser.add_argument("--one", type=int, metavar="MIB", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one is not None:
        print(json.dumps(one(args.one, args.rows)))
        return
    if args.quick:
        args.mib = [0, 16]
    started, figures = time.monotonic(), []
    for mib in args.mib:
        command = [sys.executable, "-m", "tests.bench.memory", "--one", str(mib), "--rows", str(args.rows)]
        ran = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        if ran.returncode:
            raise Unable(f"the process with a pool of {mib} MiB ended with code {ran.returncode}")
        figures.append(json.loads(ran.stdout.splitlines()[-1]))
        say(f"{figures[-1]}")
    del args.one
    includes = f"the worker's own rooms in one process, {args.rows} rows a user; no Kafka clients, no RocksDB"
    ours = {"title": "Funnelcast, shipped model", "includes": includes, "figures": figures}
    minutes = round((time.monotonic() - started) / 60, 1)
    publish("memory", args, PACKAGES, {"systems": {"funnelcast": ours}, "minutes": minutes})


if __name__ == "__main__":
    main()
