"""What a click and a user weigh, for the planning of capacity: real clicks through a worker; the last line is JSON.

Per click, live at `PER_SECOND`: bytes written to the changelog and of answers, keys and values and headers, before
compression. Per user: bytes of the table's store on disk, and of memory by folding made users in this process.

    python tests/bench/footprint.py [--users 50000] [--rows 30]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any
from uuid import uuid4

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "deploy" / "kafka")]

from local_kafka import LocalKafka  # noqa: E402

from model.contract.events import ClickEvent  # noqa: E402
from model.contract.sequence import Sequences, default_rules  # noqa: E402
from model.datasets import LogOptions, read_log  # noqa: E402
from tests.support.clicks import EXCERPT  # noqa: E402
from tests.support.stack import Stack  # noqa: E402

CHUNK = 2048
PER_SECOND, CLICKS = 250, 5_000  # a backlog would weigh less: a transaction writes each user once


def resident_bytes() -> int:
    """Return this process's resident memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def of_a_user(users: int, rows: int) -> dict[str, Any]:
    """Fold made users and see what the process grows by."""
    sequences = Sequences(default_rules())
    keys = [f"user-{number}".encode() for number in range(users)]
    before = resident_bytes()
    for row in range(rows):
        for low in range(0, users, CHUNK):
            some = keys[low : low + CHUNK]
            events = [
                ClickEvent(key.decode(), "product_view", 1_700_000_000_000 + 60_000 * row, category=f"c{row % 7}")
                for key in some
            ]
            for _ in sequences.fold(sequences.columns(events, some)):
                pass
            sequences.pack()
    return {"memory_bytes_per_user": round((resident_bytes() - before) / users), "rows_per_user": rows}


def of_a_click(broker: str, folder: Path) -> dict[str, Any]:
    """Replay the demonstration's clicks through a worker and read what it wrote."""
    suffix = uuid4().hex[:8]
    stack = Stack(broker, lambda name: f"{name}-{suffix}", folder)
    try:
        clicks = [event for _, event in read_log(EXCERPT, "taobao", LogOptions())]
        clicks = sorted(clicks, key=lambda event: event.timestamp)[:CLICKS]
        stack.start("a")
        stack.wait_ready("a")
        stack.produce(clicks, PER_SECOND)
        stack.wait_answered(300)
        samples = stack.metrics("a")
        answers = stack.read(stack.topics["stage_probabilities"])
        stack.terminate("a")
        users = len({event.user_id for event in clicks})
        disk = sum(path.stat().st_size for path in stack.state("a").rglob("*") if path.is_file())
    finally:
        stack.close()
    size = sum(
        len(record.key or b"")
        + len(record.value or b"")
        + sum(len(name) + len(value) for name, value in record.headers.items())
        for record in answers
    )
    return {
        "clicks": len(clicks),
        "answers_per_click": round(len(answers) / len(clicks), 2),
        "changelog_bytes_per_click": round(float(samples["funnelcast_changelog_bytes_total"]) / len(clicks)),
        "answer_bytes": round(size / len(answers)),
        "users": users,
        "store_bytes_per_user": round(disk / users),
        "worker_resident_bytes": round(float(samples["process_resident_memory_bytes"])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=50_000)
    parser.add_argument("--rows", type=int, default=30, help="events of each made user")
    given = parser.parse_args()
    with LocalKafka() as kafka, tempfile.TemporaryDirectory(prefix="funnelcast-footprint-") as folder:
        report = of_a_click(kafka.bootstrap, Path(folder)) | of_a_user(given.users, given.rows)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
