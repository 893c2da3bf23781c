"""Logs for the contract's tests: real ones where they are at hand, synthetic ones always, and ways to disturb them."""

import csv
import gzip
import random
from pathlib import Path

import pytest

from model.contract.events import ClickEvent

ROOT = Path(__file__).parents[3]
TAOBAO = ROOT.parent / "shared/data/taobao/UserBehavior.csv.gz"
DEMO = ROOT / "deploy/demo/clicks.csv.gz"
BEHAVIOURS = {"pv": "product_view", "cart": "cart_add", "fav": "wishlist_add", "buy": "order"}
TYPES = (
    "product_view", "product_view", "product_view", "page_view", "search", "click", "wishlist_add", "cart_add",
    "cart_remove", "checkout_start", "order", "refund",
)  # fmt: skip
START_MS = 1_700_000_000_000


def clicks(path: Path, users: int | None = None) -> list[ClickEvent]:
    """A log in Taobao format, in time order; of the first `users` users."""
    if not path.exists():
        pytest.skip(f"{path.name} of {path.parent.name} is not here")
    with gzip.open(path, "rt") as lines:
        rows = [row for row in csv.reader(lines) if int(row[4]) > 1_500_000_000]
    chosen = set(list(dict.fromkeys(row[0] for row in rows))[:users])
    rows = sorted((row for row in rows if row[0] in chosen), key=lambda row: int(row[4]))
    return [
        ClickEvent(user, BEHAVIOURS[behaviour], int(seconds) * 1000, item, category, None, f"m{n}")
        for n, (user, item, category, behaviour, seconds) in enumerate(rows)
    ]


def synthetic(events: int, users: int, mean_seconds: float, seed: int = 1, categories: int = 12) -> list[ClickEvent]:
    """A log in time order with all kinds of events, names and prices missing here and there."""
    rng, ts, log = random.Random(seed), START_MS, []
    for n in range(events):
        ts += int(rng.expovariate(1 / mean_seconds) * 1000) + (rng.random() < 0.002) * 7_200_000
        category = None if rng.random() < 0.05 else f"category {rng.randrange(categories)} é"
        item = None if rng.random() < 0.1 else str(rng.randrange(500))
        price = None if rng.random() < 0.5 else round(rng.expovariate(0.02), 2)
        message = None if rng.random() < 0.2 else f"m{n}"
        user = f"user {int(users * rng.random() ** 2)}"
        log.append(ClickEvent(user, rng.choice(TYPES), ts, item, category, price, message))
    return log


def disorder(log: list[ClickEvent], seed: int = 2, most_ms: int = 90_000) -> list[ClickEvent]:
    """Delay half of the events by up to `most_ms` and repeat 3 %."""
    rng = random.Random(seed)
    log = log + rng.sample(log, len(log) // 33)
    arrival = [event.timestamp + rng.randrange(most_ms) * (rng.random() < 0.5) for event in log]
    return [log[n] for n in sorted(range(len(log)), key=arrival.__getitem__)]
