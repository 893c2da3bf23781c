"""A campaigns file is read strictly: what it cannot mean is refused in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.campaigns import CampaignsError, load_campaigns

ONE = "name: a, rule: below, stage: intent, scope: user, threshold: 0.3"


def test_a_missing_field_takes_its_default(tmp_path: Path) -> None:
    path = tmp_path / "campaigns.yaml"
    path.write_text(f"version: 1\ncampaigns: [{{{ONE}}}]")
    (one,) = load_campaigns(path)
    assert (one.cooldown_ms, one.expires_ms, one.at, one.user_stage) == (
        86_400_000,
        86_400_000,
        ("event", "session_end"),
        (),
    )


def test_the_shipped_campaigns_are_the_seed_rule() -> None:
    campaigns = load_campaigns(None)
    assert {(one.rule, one.threshold) for one in campaigns} == {("below", 0.3), ("above", 0.7)}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("version: 2\ncampaigns: []", "version"),
        ("version: 1", "campaigns"),
        ("[", "flow node"),
        ("version: 1\ncampaigns: [{name: a}]", "rule"),
        (f"version: 1\ncampaigns: [{{{ONE}}}, {{{ONE}}}]", "share a name"),
        *(
            (f"version: 1\ncampaigns: [{{{ONE.replace(was, put)}}}]", fault)
            for was, put, fault in [
                ("0.3", "1.3", "threshold"),
                ("below", "beside", "rule"),
                ("intent", "shopping", "stage"),
                ("name: a", "name: A B", "name"),
                ("0.3", "0.3, at: []", "no kind of row"),
                ("0.3", "0.3, hysteresis: 0.8", "re-arm"),
                ("0.3", "0.3, caps: 1", "caps"),
                ("0.3", "0.3, cooldown_hours: 0", "cooldown_hours"),
                ("0.3", ".nan", "threshold"),
            ]
        ),
    ],
)
def test_a_campaigns_file_with_a_fault_is_refused_in_one_sentence(tmp_path: Path, text: str, fault: str) -> None:
    path = tmp_path / "campaigns.yaml"
    path.write_text(text)
    with pytest.raises(CampaignsError, match=f"campaigns.yaml cannot be used: .*{fault}"):
        load_campaigns(path)


def test_a_missing_campaigns_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CampaignsError, match="No such file"):
        load_campaigns(tmp_path / "none.yaml")
