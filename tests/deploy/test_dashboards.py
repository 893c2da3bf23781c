"""The committed dashboards are what their program writes, and every panel says what it shows."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

GRAFANA = Path(__file__).parents[2] / "deploy" / "grafana"
NAMES = ("pager", "model", "marketer")


def board(name: str) -> dict[str, Any]:
    return dict(json.loads((GRAFANA / "dashboards" / f"{name}.json").read_text()))


def panels(name: str) -> list[dict[str, Any]]:
    return [panel for panel in board(name)["panels"] if panel["type"] != "row"]


def test_the_committed_files_are_what_the_program_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(GRAFANA)  # where its panels are
    spec = importlib.util.spec_from_file_location("dashboards", GRAFANA / "dashboards.py")
    assert spec is not None and spec.loader is not None
    program = importlib.util.module_from_spec(spec)
    sys.modules["dashboards"] = program
    spec.loader.exec_module(program)
    written = program.written()
    assert {path.stem for path in written} == {path.stem for path in (GRAFANA / "dashboards").iterdir()} == set(NAMES)
    for path, text in written.items():
        assert path.read_text() == text, f"{path.name} is stale; run `python deploy/grafana/dashboards.py`"


@pytest.mark.parametrize("name", NAMES)
def test_every_panel_has_a_unit_a_description_and_a_query_on_the_chosen_source(name: str) -> None:
    for panel in panels(name):
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["description"].endswith(".")
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["targets"]
        for target in panel["targets"]:
            assert "$job" in target["expr"] or "ALERTS" in target["expr"], target["expr"]


@pytest.mark.parametrize("name", NAMES)
def test_panels_have_their_own_number_and_place(name: str) -> None:
    everything = board(name)["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    cells = [
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in everything
        for x in range(panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells)
