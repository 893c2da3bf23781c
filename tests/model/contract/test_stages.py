"""The funnel file: what it says reaches the rule table, and what contradicts itself is refused."""

from pathlib import Path

import pytest

from model.contract.errors import FunnelcastError, FunnelError
from model.contract.events import TYPE_CODE
from model.contract.stages import NO_STAGE, STAGES, Funnel, Repeat, Stage, load_funnel

AWARENESS, INTEREST, CONSIDERATION, INTENT, PURCHASE, LOYALTY = range(6)


def test_stages_are_in_order_of_depth() -> None:
    assert STAGES == ("awareness", "interest", "consideration", "intent", "purchase", "loyalty")
    assert STAGES.index(Stage.INTENT) == INTENT


@pytest.mark.parametrize(
    ("event", "rule"),
    [
        ("page_view", (AWARENESS, AWARENESS, 0)), ("product_view", (AWARENESS, INTEREST, 1)),
        ("search", (CONSIDERATION, CONSIDERATION, 0)), ("cart_add", (INTENT, INTENT, 0)),
        ("order", (PURCHASE, LOYALTY, 2)), ("refund", (NO_STAGE, NO_STAGE, 0)),
        ("session_end", (NO_STAGE, NO_STAGE, 0)),
    ],
)  # fmt: skip
def test_the_default_funnel_maps_events_as_documented(event: str, rule: tuple[int, int, int]) -> None:
    assert tuple(load_funnel().rules()[TYPE_CODE[event]]) == rule


def test_an_event_may_count_only_when_repeated() -> None:
    funnel = Funnel(1, "own", {}, {"interest": Repeat("click", "ever")})
    assert tuple(funnel.rules()[TYPE_CODE["click"]]) == (NO_STAGE, INTEREST, 2)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("version: 2\nname: x\nstages: {}", "version 2, but this program reads version 1"),
        ("version: 1\nname: x\nstages: {retention: [order]}", "unknown stage 'retention'"),
        ("version: 1\nname: x\nstages: {intent: [add]}", "unknown event 'add'"),
        ("version: 1\nname: x\nstages: {intent: [session_end]}", "unknown event 'session_end'"),
        ("version: 1\nname: x\nstages: {intent: [order], purchase: [order]}", "order is listed in two stages"),
        (
            "version: 1\nname: x\nstages: {}\nrepeats: {intent: {event: click, of: always}}",
            "Invalid enum value 'always'",
        ),
        (
            "version: 1\nname: x\nstages: {intent: [click]}\nrepeats: {intent: {event: click, of: ever}}",
            "must be deeper",
        ),
        ("version: 1\nname: x\nstages: {}\ncolour: red", "unknown field `colour`"),
        ("version: [", "cannot be used"),
        ("- 1", "cannot be used"),
    ],
)
def test_a_funnel_file_that_cannot_be_meant_is_refused_with_its_path(tmp_path: Path, text: str, fault: str) -> None:
    path = tmp_path / "funnel.yaml"
    path.write_text(text)
    with pytest.raises(FunnelError, match=fault) as refusal:
        load_funnel(path)
    assert str(path) in str(refusal.value)
    assert isinstance(refusal.value, FunnelcastError)


def test_a_funnel_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FunnelError, match="cannot be used"):
        load_funnel(tmp_path / "none.yaml")


def test_a_funnel_made_in_code_is_checked_too() -> None:
    with pytest.raises(FunnelError, match="two repeat rules"):
        Funnel(1, "own", {}, {"interest": Repeat("click", "ever"), "intent": Repeat("click", "ever")})
