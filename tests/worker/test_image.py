"""In a container the compiled functions are where Numba may use them, before Numba is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from worker.image import unpack

ROOT = Path(__file__).parents[2]


def test_the_carried_cache_is_copied_once(tmp_path: Path) -> None:
    carried, cache = tmp_path / "compiled", tmp_path / "tmp" / "cache"
    (carried / "contract_1f").mkdir(parents=True)
    (carried / "contract_1f" / "fold.nbi").write_bytes(b"index")
    (carried / "contract_1f" / "fold.nbi").chmod(0o444)
    unpack(carried, cache)
    copied = cache / "contract_1f" / "fold.nbi"
    assert copied.read_bytes() == b"index"
    assert copied.stat().st_mode & 0o200, "Numba writes to its cache"
    copied.write_bytes(b"newer")
    unpack(carried, cache)
    assert copied.read_bytes() == b"newer"


def test_without_a_carried_cache_nothing_is_made(tmp_path: Path) -> None:
    unpack(tmp_path / "compiled", tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("words", [["--version"], ["worker", "--help"]])
def test_the_door_leads_to_the_command_line(words: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "worker.image", *words],
        cwd=ROOT,
        env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "funnelcast" in done.stdout
