"""The golden file fixes rows, features and bytes of a small log: models and tables made before must stay valid.

A deliberate change of the contract needs new versions (of the bundle's contract, of the table's values) and
    FUNNELCAST_GOLDEN=write python -m pytest tests/model/contract/test_golden.py
"""

import hashlib
import json
import os

from model.contract.events import WIRE_TYPES, ClickEvent
from model.contract.sequence import REVISED
from tests.model.contract.logs import ROOT
from tests.model.contract.runs import Run

GOLDEN = ROOT / "tests/golden/contract.json"


def small_log() -> list[ClickEvent]:
    """1,500 events of 5 users by arithmetic alone: gaps, late events, duplicates, a user longer than the ring."""
    log, ts = [], 1_700_000_000_000
    for n in range(1500):
        ts += 3_000_000 if n % 150 == 149 else n * 7919 % 20_000
        late = 40_000 if n % 23 == 5 else 90_000 if n % 61 == 7 else 0
        log.append(
            ClickEvent(
                f"user {n % 5 if n % 5 != 3 and n % 16 == 0 else 0}",
                WIRE_TYPES[n * 31 % len(WIRE_TYPES)],
                ts - late,
                None if n % 11 == 0 else f"item {n * 13 % 97}",
                None if n % 13 == 0 else f"category {n * 17 % 7}",
                None if n % 3 == 0 else n * 29 % 1000 / 4,
                None if n % 5 == 0 else f"m{n - (n % 41 == 3)}",
            )
        )
    return log


def produced() -> dict[str, object]:
    worker = Run()
    worker.fold(small_log())
    worker.close_due(worker.sequences.streams[0] + 10_000_000)
    worker.commit()
    digest = hashlib.sha256(b"".join(key + b"=" + worker.table[key] for key in sorted(worker.table)))
    rows = [
        [key.decode(), *numbers, features.hex() if features else None, seen]
        for key, *numbers, features, seen in worker.rows
    ]
    return {
        "verdicts": [worker.verdicts.count(verdict) for verdict in range(3)],
        "revised": [row[3] for row in worker.rows].count(REVISED),
        "rows": len(rows),
        "rows_sha256": hashlib.sha256(json.dumps(rows).encode()).hexdigest(),
        "table_values": len(worker.table),
        "table_sha256": digest.hexdigest(),
        "some_rows": rows[::100],
    }


def test_the_contract_gives_the_rows_features_and_bytes_it_always_gave() -> None:
    found = produced()
    if os.environ.get("FUNNELCAST_GOLDEN") == "write":
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
    assert found == json.loads(GOLDEN.read_text())


def test_the_golden_log_has_every_verdict_and_late_inserts() -> None:
    golden = json.loads(GOLDEN.read_text())
    assert min(golden["verdicts"]) > 10
    assert golden["revised"] > 50
    assert max(row[1] for row in golden["some_rows"]) > 1024
