"""Campaigns: a campaigns.yaml in, checked `Campaign` rules out."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from model.contract.errors import FunnelcastError
from model.contract.stages import Stage

HOUR_MS = 3_600_000
SHIPPED = Path(__file__).with_name("campaigns.yaml")

Hours = Annotated[float, msgspec.Meta(gt=0, le=10_000)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class CampaignsError(FunnelcastError):
    """A campaigns file that cannot be used."""


class Campaign(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One rule: fire when the reach probability of `stage` lies below or above the threshold."""

    name: Annotated[str, msgspec.Meta(pattern="^[a-z0-9][a-z0-9-]{0,62}$")]
    rule: Literal["below", "above"]
    stage: Stage
    scope: Literal["category", "user"]
    threshold: Annotated[float, msgspec.Meta(gt=0, lt=1)]
    hysteresis: Share = 0.05
    cooldown_hours: Hours = 24.0
    expires_hours: Hours = 24.0
    holdout: Share = 0.1  # share of the users that are never triggered
    at: tuple[Literal["event", "session_end"], ...] = ("event", "session_end")
    user_stage: tuple[Stage, ...] = ()  # the users' stages that it applies to; empty: all

    def __post_init__(self) -> None:
        if not self.at:
            raise ValueError(f"campaign {self.name} applies at no kind of row, give at: [event, session_end]")
        if not 0 <= self.rearm <= 1:
            raise ValueError(f"campaign {self.name} could never re-arm: {self.rearm:g} is no probability")

    @property
    def cooldown_ms(self) -> int:
        """Return the cooldown in event time."""
        return max(1, round(self.cooldown_hours * HOUR_MS))

    @property
    def expires_ms(self) -> int:
        """Return how long a trigger stays worth acting on."""
        return round(self.expires_hours * HOUR_MS)

    @property
    def rearm(self) -> float:
        """Return the probability that the user must reach before the campaign can fire again."""
        return self.threshold + self.hysteresis if self.rule == "below" else self.threshold - self.hysteresis

    @property
    def key(self) -> int:
        """Return the campaign's key in a user's memory."""
        return zlib.crc32(self.name.encode())


class CampaignsFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of a campaigns.yaml."""

    version: Literal[1]
    campaigns: tuple[Campaign, ...]


def load_campaigns(path: Path | None) -> tuple[Campaign, ...]:
    """Read and check a campaigns file; None reads the shipped one."""
    path = SHIPPED if path is None else path
    try:
        content = msgspec.yaml.decode(path.read_bytes(), type=CampaignsFile)
        _check_names(content.campaigns)
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        fault = " ".join(str(error).split())  # YAML errors come in several lines
        raise CampaignsError(
            f"the campaigns file {path} cannot be used: {fault}; correct it or unset FUNNELCAST_CAMPAIGNS"
        ) from error
    return content.campaigns


def _check_names(campaigns: Iterable[Campaign]) -> None:
    seen: dict[int, str] = {}
    for campaign in campaigns:
        if campaign.key in seen:
            raise ValueError(f"{campaign.name} and {seen[campaign.key]} share a name or its hash, rename one")
        seen[campaign.key] = campaign.name
