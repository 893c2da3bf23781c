"""The import contracts of pyproject.toml do bite: each is broken once, in a copy."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINT = Path(sys.executable).with_name("lint-imports")


def lint(tree: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([LINT, "--no-cache"], cwd=tree, capture_output=True, text=True, timeout=120)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Copy what import-linter reads."""
    for package in ("worker", "model", "export"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__", "bundles"))
    (tmp_path / "tests").mkdir()
    shutil.copy(ROOT / "tests" / "import_contracts.py", tmp_path / "tests")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_code_keeps_every_import_contract(tree: Path) -> None:
    done = lint(tree)
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


@pytest.mark.parametrize(
    ("file", "planted", "broken"),
    [
        ("worker/planted.py", "import torch", "The worker imports the contract only, never torch BROKEN"),
        ("worker/planted.py", "import model.datasets", "The worker imports the contract only, never torch BROKEN"),
        ("worker/planted.py", "import export", "The worker imports the contract only, never torch BROKEN"),
        ("worker/planted.py", "def f():\n    import faust", "Only the shell of the worker imports faust BROKEN"),
        (
            "model/contract/planted.py",
            "import yaml",
            "The contract imports the standard library, numpy, numba and msgspec only BROKEN",
        ),
        ("model/contract/planted.py", "import model.datasets", "numpy, numba and msgspec only BROKEN"),
        ("model/planted.py", "import worker", "The model imports neither the worker nor the export BROKEN"),
        ("model/planted.py", "import export", "The model imports neither the worker nor the export BROKEN"),
        ("export/planted.py", "from worker import settings", "The export never imports the worker BROKEN"),
    ],
)
def test_a_planted_import_in_a_forbidden_direction_is_found(tree: Path, file: str, planted: str, broken: str) -> None:
    (tree / file).write_text(f"{planted}\n")
    done = lint(tree)
    assert done.returncode == 1
    assert broken in " ".join(done.stdout.split())
