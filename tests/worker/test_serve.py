"""`funnelcast worker` refuses what cannot work: one sentence, exit code 2, no traceback, before it joins the group."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from model.contract.bundle import SHIPPED
from tests.support.topics import create_topics
from worker import cli


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(["worker", "--http-port", "0", *arguments]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("funnelcast: ")
    assert "\n" not in said
    assert "Traceback" not in said
    return said


@pytest.fixture(autouse=True)
def own_names(monkeypatch: pytest.MonkeyPatch, unique: Callable[[str], str], tmp_path: Path) -> None:
    for name in ("APP_ID", "CLICKSTREAM", "STAGE_PROBABILITIES", "TRIGGERS", "DEAD_LETTERS", "LATE"):
        monkeypatch.setenv(f"FUNNELCAST_{name}", unique(name.lower().replace("_", "-")))
    monkeypatch.setenv("FUNNELCAST_STATE_DIR", str(tmp_path / "state"))


def test_without_a_broker_the_worker_says_where_it_looked(capsys: pytest.CaptureFixture[str]) -> None:
    assert "127.0.0.1:1" in refusal(capsys, "--broker", "127.0.0.1:1")


def test_missing_topics_are_named_with_the_command_that_makes_them(
    capsys: pytest.CaptureFixture[str], broker: str
) -> None:
    assert "funnelcast topics" in refusal(capsys, "--broker", broker)


def test_a_wrong_partition_count_is_named(
    capsys: pytest.CaptureFixture[str], broker: str, unique: Callable[[str], str]
) -> None:
    assert cli.main(["topics", "--broker", broker]) == 0
    other = unique("other-clicks")
    create_topics(broker, other, partitions=7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FUNNELCAST_CLICKSTREAM", other)
        said = refusal(capsys, "--broker", broker)
    assert other in said
    assert "7" in said
    assert "4" in said


def test_a_bundle_of_another_vocabulary_is_refused(
    capsys: pytest.CaptureFixture[str], broker: str, tmp_path: Path
) -> None:
    other = tmp_path / "bundle"
    shutil.copytree(SHIPPED, other)
    contract = json.loads((other / "contract.json").read_text())
    contract["vocabulary"]["hash"] = "murmur"
    (other / "contract.json").write_text(json.dumps(contract))
    assert "contract.json" in refusal(capsys, "--broker", broker, "--bundle", str(other))  # the sha256 is wrong already
    provenance = json.loads((other / "provenance.json").read_text())
    provenance["files"]["contract.json"] = hashlib.sha256((other / "contract.json").read_bytes()).hexdigest()
    (other / "provenance.json").write_text(json.dumps(provenance))
    assert "vocabulary" in refusal(capsys, "--broker", broker, "--bundle", str(other))


def test_a_missing_bundle_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert str(tmp_path / "nothing") in refusal(capsys, "--bundle", str(tmp_path / "nothing"))


def test_a_state_directory_that_cannot_be_made_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in refusal(capsys, "--state-dir", str(tmp_path / "file" / "state"))


def test_an_unknown_setting_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUNNELCAST_BROKR", "localhost:9092")
    assert "FUNNELCAST_BROKR" in refusal(capsys)
