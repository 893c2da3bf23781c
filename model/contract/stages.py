"""The funnel: six stages and which event reaches which; a funnel.yaml enters, the rule table of the fold leaves."""

from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from model.contract.errors import FunnelError
from model.contract.events import N_TYPES, TYPE_CODE, WIRE_TYPES

DEFAULT_FUNNEL = Path(__file__).with_name("funnel.yaml")


class Stage(StrEnum):
    """A stage of the funnel, in order of depth."""

    AWARENESS = "awareness"
    INTEREST = "interest"
    CONSIDERATION = "consideration"
    INTENT = "intent"
    PURCHASE = "purchase"
    LOYALTY = "loyalty"


STAGES: tuple[Stage, ...] = tuple(Stage)
NO_STAGE = 255
NO_REPEAT, REPEAT_IN_CATEGORY, REPEAT_EVER = range(3)
_REPEAT_CODE = {"category_within_24h": REPEAT_IN_CATEGORY, "ever": REPEAT_EVER}


class Repeat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An event that reaches a deeper stage when one of its feature class came before."""

    event: str
    of: Literal["category_within_24h", "ever"]


class Funnel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which canonical events, alone or repeated, reach which stage."""

    version: int
    name: str
    stages: dict[str, list[str]]
    repeats: dict[str, Repeat] = {}

    def __post_init__(self) -> None:
        if self.version != 1:
            raise FunnelError(f"the funnel has version {self.version}, but this program reads version 1")
        _known("stage", [*self.stages, *self.repeats], tuple(STAGES))
        listed = [event for events in self.stages.values() for event in events]
        repeated = [repeat.event for repeat in self.repeats.values()]
        _known("event", listed + repeated, WIRE_TYPES)
        _once("is listed in two stages", listed)
        _once("has two repeat rules", repeated)
        for stage, repeat in self.repeats.items():
            alone = [name for name, events in self.stages.items() if repeat.event in events]
            if alone and STAGES.index(Stage(alone[0])) >= STAGES.index(Stage(stage)):
                raise FunnelError(f"a repeated {repeat.event} reaches {stage}, which must be deeper than {alone[0]}")

    def rules(self) -> npt.NDArray[Any]:
        """Rule table of the fold: per event type its stage, its stage when repeated, and the repeat rule."""
        table = np.full((N_TYPES, 3), NO_STAGE, np.uint8)  # (N_TYPES, 3)
        for stage, events in self.stages.items():
            for event in events:
                table[TYPE_CODE[event], :2] = STAGES.index(Stage(stage))
        table[:, 2] = NO_REPEAT
        for stage, repeat in self.repeats.items():
            table[TYPE_CODE[repeat.event], 1:] = STAGES.index(Stage(stage)), _REPEAT_CODE[repeat.of]
        return table


def _known(what: str, names: list[str], allowed: tuple[str, ...]) -> None:
    unknown = sorted(set(names) - set(allowed))
    if unknown:
        raise FunnelError(f"the funnel names the unknown {what} {unknown[0]!r}; use one of {', '.join(allowed)}")


def _once(fault: str, events: list[str]) -> None:
    for event in events:
        if events.count(event) > 1:
            raise FunnelError(f"the event {event} {fault}; keep one")


def load_funnel(path: Path | None = None) -> Funnel:
    """Read and check a funnel file; None reads the default one."""
    path = DEFAULT_FUNNEL if path is None else path
    try:
        return msgspec.yaml.decode(path.read_bytes(), type=Funnel)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise FunnelError(f"the funnel file {path} cannot be used: {error}; correct it or use the default") from error
