"""Where the checkers of deployment files are, and how checkov is asked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

PROGRAMS = Path(sys.prefix) / "bin"
CHECKOV = Path(sys.prefix) / "checkov" / "bin" / "checkov"  # its pins contradict torch's: an environment of its own


def checkov(framework: str, directory: Path, *options: str) -> dict[str, Any]:
    """Return checkov's report on a directory; nothing is fetched."""
    # By its interpreter: the script names the directory in which it was installed.
    command = [
        CHECKOV.with_name("python"),
        "-m",
        "checkov.main",
        "--framework",
        framework,
        "-d",
        directory,
        "--skip-download",
        "--quiet",
        "-o",
        "json",
        *options,
    ]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=300)
    assert done.stdout, done.stderr
    return dict(json.loads(done.stdout))


def failures(report: dict[str, Any]) -> list[str]:
    """Word what failed, each once."""
    failed = report["results"]["failed_checks"]
    return sorted({f"{check['check_id']} {check['check_name']}: {check['resource']}" for check in failed})
