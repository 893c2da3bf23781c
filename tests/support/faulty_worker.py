"""The worker, with one fault planted: STACK_FAULT=POINT@FLAG:N:SIGNAL sends it SIGNAL the Nth time it reaches POINT.

Points of a transaction: folded (before its sends), sent (after them, before the acknowledgements), before_commit,
committed (before the store). FLAG is a file that marks that the fault has struck, so that it strikes once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from worker import cli, emitter, outbox, writer


def plant(point: str, flag: Path, turn: int, number: int) -> None:
    turns = 0

    def strike() -> None:
        nonlocal turns
        turns += 1
        if turns >= turn and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), number)

    owner, name = {
        "folded": (emitter.Assignment, "_deliver"),
        "sent": (outbox.Outbox, "acknowledged"),
        "before_commit": (emitter.Assignment, "_commit"),
        "committed": (writer.PartitionWriter, "_store"),
    }[point]
    setattr(owner, name, struck_before(getattr(owner, name), strike))


def struck_before(stock: Callable[..., Any], strike: Callable[[], None]) -> Callable[..., Any]:
    def method(*args: Any) -> Any:
        strike()
        return stock(*args)

    return method


if __name__ == "__main__":
    fault = os.environ.pop("STACK_FAULT", "")
    if fault:
        place, _, rest = fault.partition("@")
        path, turn, number = rest.split(":")
        plant(place, Path(path), int(turn), int(number))
    sys.exit(cli.main(sys.argv[1:]))
