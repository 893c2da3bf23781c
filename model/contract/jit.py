"""The typed door to Numba: compiled functions of the contract, cached beside their source.

Numba's cache looks at the function's own file only, so the cached name carries a digest of all sources of the contract
(an edit of a constant recompiles) and of the bounds checks, which FUNNELCAST_BOUNDSCHECK=1 turns on.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from numba import njit

F = TypeVar("F", bound=Callable[..., Any])
BOUNDSCHECK = os.environ.get("FUNNELCAST_BOUNDSCHECK") == "1"
_SOURCES = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
_DIGEST = hashlib.sha256(_SOURCES + bytes([BOUNDSCHECK])).hexdigest()[:12]
# Without Numba's reference counts, of which a fold would make hundreds per event; so nothing compiled may allocate.
_OPTIONS: dict[str, Any] = {"cache": True, "nogil": True, "boundscheck": BOUNDSCHECK, "_nrt": False}


def jit(function: F) -> F:
    """Compile a function on its first call, without the interpreter lock."""
    function.__qualname__ = f"{function.__qualname__}_{_DIGEST}"
    return cast(F, njit(**_OPTIONS)(function))
