"""The benchmark of preparing a log runs, and says what its figures are of."""

import json
import subprocess
import sys
from pathlib import Path

from tests.bench.measure import ROOT


def test_the_benchmark_of_preparing_a_log_ends_with_one_json_object(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.bench.replay", "--quick", "--out", str(tmp_path)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout.splitlines()[-1])
    assert said == json.loads((tmp_path / "replay.json").read_text())
    (found,) = said["systems"]["funnelcast"]["figures"]
    assert found["events"] == 20_000 and found["rows"] > 20_000 and found["users"] > 100
    assert set(found["seconds_by_stage"]) == {"read", "fingerprint", "divide", "replay", "label", "write"}
    assert min(found["peak_rss_mb"], found["prepared_mb"], found["peak_disk_mb"]) > 0
