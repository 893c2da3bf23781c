"""Reference pages from the code: settings and record types in, configuration.md and asyncapi.yaml out.

    python deploy/docs/generate.py [--check]

--check only says whether the files are what this program writes.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
import typing
from pathlib import Path
from typing import Any

import msgspec
import yaml
from pydantic import SecretStr

from model.contract.events import SESSION_END, TYPES, WIRE_TYPES, ClickEvent
from model.contract.stages import STAGES
from worker.envelopes import Reason
from worker.records import Trigger
from worker.retell import LATEST, Explanation
from worker.settings import PREFIX, Settings
from worker.writing import NEXT_EVENTS

HERE = Path(__file__).parent
TEXT, NUMBER, INTEGER, BOOLEAN = ({"type": name} for name in ("string", "number", "integer", "boolean"))
TIME_MS = {"type": "integer", "description": "milliseconds since the epoch"}
SHARE = {"type": "number", "minimum": 0, "maximum": 1}
TRACEPARENT = {"type": "string", "description": "W3C trace context, where the record is traced"}
SCHEMAS = ("ClickEvent", "StageProbability", "Trigger", "Explanation", "Effect")
CHANGE = {"type": "number", "minimum": -1, "maximum": 1}
EVENT_TYPE = {"type": "string", "enum": [*WIRE_TYPES, TYPES[SESSION_END]]}
STAGE = {"type": "string", "enum": [stage.value for stage in STAGES]}


def configuration() -> str:
    """Return the page of all settings."""
    lines = [
        "# Configuration",
        "",
        "Every setting is an environment variable, read once at the start; unknown ones are refused. Written by",
        "`deploy/docs/generate.py` from `worker/settings.py`.",
        "",
        "| variable | default | values | meaning |",
        "|---|---|---|---|",
    ]
    for name, field in Settings.model_fields.items():
        lines.append(
            f"| `{PREFIX}{name.upper()}` | {_default(field.default)} | {_values(field)} | {field.description} |"
        )
    return "\n".join(lines) + "\n"


def _default(value: object) -> str:
    if isinstance(value, SecretStr):
        return "secret" if value.get_secret_value() else ""
    return "" if value in (None, "") else f"`{value}`"


def _values(field: Any) -> str:
    choices = typing.get_args(field.annotation) if typing.get_origin(field.annotation) is typing.Literal else ()
    if choices:
        return ", ".join(f"`{choice}`" for choice in choices)
    low = next((rule.ge for rule in field.metadata if hasattr(rule, "ge")), None)
    high = next((rule.le for rule in field.metadata if hasattr(rule, "le")), None)
    kind = {int: "integer", float: "number"}.get(field.annotation, "")
    bounds = f"{low:,} to {high:,}" if low is not None and high is not None else ""
    return " ".join(filter(None, (kind, bounds)))


def asyncapi() -> str:
    """Return the AsyncAPI document of the topics."""
    channels = {name: _channel(name, *rest) for name, rest in CHANNELS.items()}
    document = {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Funnelcast",
            "version": tomllib.loads((HERE.parents[1] / "pyproject.toml").read_text())["project"]["version"],
            "description": "Topics of a Funnelcast worker. Read its outputs with isolation.level=read_committed: then "
            "every click is answered exactly once. Topic names are the defaults; all are configurable.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": {
            name: {
                "action": "receive" if name == "clickstream" else "send",
                "channel": {"$ref": f"#/channels/{name}"},
                "summary": CHANNELS[name][1],
            }
            for name in CHANNELS
        },
        "components": {"schemas": schemas()},
    }
    head = "# Written by deploy/docs/generate.py from the code.\n"
    return head + yaml.dump(document, Dumper=Plain, sort_keys=False, width=120, allow_unicode=True)


class Plain(yaml.SafeDumper):
    """Writes equal parts out, each time."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


# field of the settings -> (schema or None for bytes as they came, what it carries, further headers)
CHANNELS: dict[str, tuple[str | None, str, dict[str, Any]]] = {
    "clickstream": ("ClickEvent", "Click events, keyed by user id; Segment and GA4 are read too.", {}),
    "stage_probabilities": ("StageProbability", "One answer per event and session end.", {}),
    "triggers": ("Trigger", "Campaigns to start for a user.", {}),
    "dead_letters": (
        None,
        "Records that could not be read, with their bytes as they came.",
        {"reason": {"type": "string", "enum": [reason.value for reason in Reason]}},
    ),
    "late": (None, "Events older than the lateness bound, as they came.", {"reason": {"const": "late"}}),
    "explanations": (
        "Explanation",
        "What moved one in N answers (FUNNELCAST_EXPLAIN_ONE_IN); best effort, at most once, outside of transactions.",
        {},
    ),
}


def _channel(name: str, schema: str | None, summary: str, headers: dict[str, Any]) -> dict[str, Any]:
    message: dict[str, Any] = {"name": name, "summary": summary}
    if schema is None:
        message["contentType"] = "application/octet-stream"
        headers = {**headers, "detail": TEXT, "source_topic": TEXT, "source_partition": TEXT, "source_offset": TEXT}
    else:
        message["payload"] = {"$ref": f"#/components/schemas/{schema}"}
    names = ("ce_id", "ce_type", "ce_source", "ce_specversion", "ce_time", "content-type")
    written = {} if name == "clickstream" else {**dict.fromkeys(names, TEXT), **headers}
    traced = {} if name == "explanations" else {"traceparent": TRACEPARENT}
    message["headers"] = {"type": "object", "properties": {**written, **traced}}
    message["bindings"] = {"kafka": {"key": {"type": "string", "description": "user id"}}}
    topic = Settings.model_fields[name].default
    partitions = Settings.model_fields["partitions"].default
    return {
        "address": topic,
        "description": summary,
        "messages": {name: message},
        "bindings": {"kafka": {"topic": topic, "partitions": partitions}},
    }


def schemas() -> dict[str, Any]:
    """Return the JSON schemas of the values."""
    kinds = [ClickEvent, Trigger, Explanation]
    _, found = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    click, trigger = found["ClickEvent"], found["Trigger"]
    click["properties"]["event"] = {"type": "string", "enum": list(WIRE_TYPES)}
    for name in ("event_time", "expires_at"):
        trigger["properties"][name] = TIME_MS
    trigger["properties"] |= {
        "stage": STAGE,
        "rule": {"type": "string", "enum": ["below", "above"]},
        "scope": {"type": "string", "enum": ["category", "user"]},
        "probability": SHARE,
        "threshold": SHARE,
        "model": _model(),
    }
    _constrain_explanation(found["Explanation"], found["Effect"])
    return {name: found.get(name) or _stage_probability() for name in SCHEMAS}


def _constrain_explanation(explanation: dict[str, Any], effect: dict[str, Any]) -> None:
    for told in (explanation, effect):
        told["properties"] |= {"event_time": TIME_MS, "event_type": EVENT_TYPE}
    explanation["properties"] |= {
        "id": {"type": "string", "description": "of the answer"},
        "category_probabilities": _by_stage(SHARE),
        "user_probabilities": _by_stage(SHARE),
        "past_events": {"type": "integer", "minimum": 0, "description": "of which the latest are in `events`"},
        "model": _model(),
    }
    explanation["properties"]["events"] |= {"maxItems": LATEST, "description": "oldest first"}
    effect["properties"] |= {"category_effect": _by_stage(CHANGE), "user_effect": _by_stage(CHANGE)}


def _by_stage(value: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": {stage.value: value for stage in STAGES}, "additionalProperties": False}


def _model() -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["name", "version", "sha256"],
        "properties": {"name": TEXT, "version": TEXT, "sha256": TEXT},
        "additionalProperties": False,
    }


def _stage_probability() -> dict[str, Any]:
    meaning = "chance to reach the stage or a deeper one within the horizon; empty without a model"
    chances = {**_by_stage(SHARE), "description": meaning}
    properties = {
        "id": TEXT,
        "user_id": TEXT,
        "event_time": TIME_MS,
        "arrival_time": {"type": ["integer", "null"], "description": "Kafka's time of the click; null: a session end"},
        "event_type": EVENT_TYPE,
        "category": {"type": ["string", "null"]},
        "stage": STAGE,
        "category_probabilities": chances,
        "next_event": {"type": "object", "additionalProperties": SHARE, "maxProperties": NEXT_EVENTS},
        "sequence_length": {"type": "integer", "minimum": 1},
        "model": _model(),
        "degraded": {"type": "boolean", "description": "base rates instead of scores"},
        "user_probabilities": chances,
    }
    return {
        "type": "object",
        "description": "What is known of a user after an event.",
        "required": list(properties),
        "properties": properties,
        "additionalProperties": False,
    }


def written() -> dict[Path, str]:
    """Return each file with its content."""
    return {HERE / "configuration.md": configuration(), HERE / "asyncapi.yaml": asyncapi()}


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the reference pages.")
    parser.add_argument("--check", action="store_true", help="write nothing; end with 1 where a file is stale")
    check = parser.parse_args().check
    stale = [path for path, text in written().items() if not path.exists() or path.read_text() != text]
    if check and stale:
        print(f"stale: {', '.join(path.name for path in stale)}; run `python deploy/docs/generate.py`")
        return 1
    for path in () if check else stale:
        path.write_text(written()[path])
    return 0


if __name__ == "__main__":
    sys.exit(main())
