"""The container's door: the compiled functions of the image in, a cache that Numba accepts out; then the command.

Numba uses a cache only where it may write, and the root of the container is read-only: so the carried files are copied.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

CARRIED = Path(sys.prefix) / "compiled"
CACHE_VARIABLE = "NUMBA_CACHE_DIR"
EXIT_REFUSED = 2


def unpack(carried: Path, cache: Path) -> None:
    """Copy the carried cache, unless one is there: a container that starts again keeps its own."""
    if carried.is_dir() and not cache.exists():
        shutil.copytree(carried, cache, copy_function=shutil.copyfile)


def main() -> int:
    """Unpack, then run the command line."""
    cache = os.environ.get(CACHE_VARIABLE, "")
    try:
        if cache:
            unpack(CARRIED, Path(cache))
    except OSError as error:
        reason = f"cannot write to {cache} ({error.strerror}), the compiled functions go there"
        print(f"funnelcast: {reason}; mount a writable directory, such as a tmpfs at /tmp", file=sys.stderr)
        return EXIT_REFUSED
    from worker.cli import main as command  # not before: Numba reads its environment when it is imported

    return command()


if __name__ == "__main__":
    sys.exit(main())
