"""The reference pages are what the code says, links between pages lead somewhere, and schemas fit the records."""

from __future__ import annotations

import gzip
import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import msgspec
import numpy as np
import pytest
import yaml

from model.contract.events import TYPES, ClickEvent
from model.contract.stages import STAGES
from tests.support.plain_records import records_of
from worker.campaigns import Campaign
from worker.policy import Decision, Outcome
from worker.records import Answers, Encoder, Model, Source, lay_out
from worker.retell import Effect, Explanation

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "deploy" / "docs"
ENCODER = Encoder(Source("app", "clickstream", 2), Model("taobao", "1", "ab" * 32))
CAMPAIGN = Campaign(name="nudge", rule="below", stage=STAGES[3], scope="user", threshold=0.3)


@pytest.fixture(scope="module")
def program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["generate"] = module
    spec.loader.exec_module(module)
    return module


def test_the_committed_pages_are_what_the_program_writes(program: ModuleType) -> None:
    for path, text in program.written().items():
        assert path.read_text() == text, f"{path.name} is stale; run `python deploy/docs/generate.py`"


@pytest.fixture(scope="module")
def asyncapi() -> jsonschema.Draft7Validator:
    packed = (Path(__file__).parent / "schemas" / "asyncapi-3.0.0.json.gz").read_bytes()
    return jsonschema.Draft7Validator(json.loads(gzip.decompress(packed)))


def test_the_document_follows_the_asyncapi_specification(asyncapi: jsonschema.Draft7Validator) -> None:
    document = yaml.safe_load((DOCS / "asyncapi.yaml").read_text())
    assert not [f"{list(fault.path)}: {fault.message}" for fault in asyncapi.iter_errors(document)]
    assert not asyncapi.is_valid(document | {"operations": {"clickstream": {"action": "read"}}})


def check(schema: str, value: Any) -> None:
    document = yaml.safe_load((DOCS / "asyncapi.yaml").read_text())
    whole = {"$ref": f"#/components/schemas/{schema}", "components": document["components"]}
    jsonschema.validate(value, whole, cls=jsonschema.Draft202012Validator)


@pytest.mark.parametrize("with_model", [True, False])
def test_stage_probabilities_fit_their_schema(with_model: bool) -> None:
    n = 3
    answers = Answers(
        keys=[b"ann", b"bob", b"cid"],
        offset=np.array([7, 8, -1]),
        event_time=np.array([1, 2, 3]),
        arrival_time=np.array([5, 6, -1]),
        type=np.array([TYPES.index(name) for name in ("order", "search", "session_end")], "u1"),
        user_stage=np.array([4, 2, 0], "u1"),
        category=[b"shoes", None, b"hats"],
        sequence_length=np.array([1, 2, 3]),
        reach=np.full((n, 2, 6), 0.5, "f4") if with_model else None,
        next_type=np.full((n, 20), 0.05, "f4") if with_model else None,
        degraded=np.array([False, False, True]),
    )
    for _, value, _ in records_of(ENCODER.stage_probabilities(lay_out(answers), 4)):
        check("StageProbability", msgspec.json.decode(value))


def test_triggers_fit_their_schema() -> None:
    _, value, _ = ENCODER.trigger(b"ann", Decision(CAMPAIGN, Outcome.FIRE, 0.2, "abc"), 1_511_568_183_000)
    check("Trigger", msgspec.json.decode(value))


def test_explanations_fit_their_schema() -> None:
    chances = {stage.value: 0.5 for stage in STAGES}
    past = Effect(1, "click", None, {stage.value: -0.25 for stage in STAGES}, chances)
    model = {"name": "taobao", "version": "1", "sha256": "ab"}
    told = Explanation("id", "ann", 2, "session_end", "hats", chances, chances, [past], 1, model)
    check("Explanation", msgspec.to_builtins(told))
    with pytest.raises(jsonschema.ValidationError):
        check("Explanation", msgspec.to_builtins(msgspec.structs.replace(told, event_type="teleport")))


def test_clicks_fit_their_schema_and_others_do_not() -> None:
    click = ClickEvent("ann", "order", 1_511_568_183_000, price=9.5)
    check("ClickEvent", msgspec.to_builtins(click))
    with pytest.raises(jsonschema.ValidationError):
        check("ClickEvent", {"user_id": "ann", "event": "teleport", "timestamp": 1})


def test_every_reference_in_the_document_leads_somewhere() -> None:
    text = (DOCS / "asyncapi.yaml").read_text()
    document = yaml.safe_load(text)
    for path in re.findall(r"\$ref: '?#/([\w/]+)", text):
        node = document
        for part in path.split("/"):
            node = node[part]


def test_links_between_the_pages_lead_to_a_page_and_a_heading() -> None:
    for page in DOCS.glob("*.md"):
        for file, anchor in re.findall(r"\]\(([\w./-]*)(?:#([\w-]+))?\)", page.read_text()):
            target = page if not file else page.parent / file
            assert target.exists(), (page.name, file)
            if anchor:
                headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
                assert anchor in {heading.lower().replace(" ", "-") for heading in headings}, (page.name, anchor)
