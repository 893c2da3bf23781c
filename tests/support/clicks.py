"""Real clicks for tests: the log of ../shared where it is there, else the excerpt that the project carries."""

from __future__ import annotations

from pathlib import Path

from model.contract.events import ClickEvent
from model.datasets import LogOptions, read_log

ROOT = Path(__file__).parent.parent.parent
EXCERPT = ROOT / "deploy" / "demo" / "clicks.csv.gz"
TAOBAO = ROOT.parent / "shared" / "data" / "taobao" / "UserBehavior.csv.gz"


def real_clicks(users: int) -> list[ClickEvent]:
    """Return all events of the first `users` users in event-time order, with message ids."""
    path = TAOBAO if TAOBAO.exists() else EXCERPT
    events = [event for _, event in read_log(path, "taobao", LogOptions())]
    kept = set(list(dict.fromkeys(event.user_id for event in events))[:users])
    return sorted((event for event in events if event.user_id in kept), key=lambda event: event.timestamp)
