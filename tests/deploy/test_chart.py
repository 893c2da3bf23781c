"""The chart renders to what Kubernetes and the operators accept, for its main value sets; wrong values are refused."""

from __future__ import annotations

import functools
import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.chart import (
    CHART,
    CRDS,
    KUBERNETES,
    SETS,
    Values,
    documents,
    helm,
    render,
    rendered,
    values_of,
    with_values,
)
from tests.support.checks import CHECKOV, checkov, failures

# what the tools say


@pytest.mark.parametrize("name", SETS)
def test_the_chart_lints_without_a_finding(name: str) -> None:
    report = helm.lint(str(CHART), values_of(name), strict=True)
    said = [message for message in report["messages"] if "icon is recommended" not in message["error"]]
    assert not report["errors"] and not said, (report["errors"], said)


@pytest.mark.parametrize("name", SETS)
def test_kubernetes_accepts_every_resource(name: str) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    own = [document for document in documents(rendered(name)) if "." not in document["apiVersion"].split("/")[0]]
    own += [d for d in documents(rendered(name)) if d["apiVersion"].split("/")[0].endswith(".k8s.io")]
    assert {"StatefulSet", "Service", "ServiceAccount"} <= {document["kind"] for document in own}
    for version in KUBERNETES:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for document in own:
                validate.validate(document, version, strict=True)


@pytest.mark.parametrize("name", SETS)
def test_the_operators_accept_every_custom_resource(name: str) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    schemas = crd_schemas()
    custom = [d for d in documents(rendered(name)) if (d["apiVersion"], d["kind"]) in schemas]
    plain = re.compile(r"v1|(apps|policy|batch)/v1|[a-z.]+\.k8s\.io/v1")
    unknown = [d["kind"] for d in documents(rendered(name)) if d not in custom and not plain.fullmatch(d["apiVersion"])]
    assert not unknown
    for document in custom:
        faults = jsonschema.Draft7Validator(schemas[document["apiVersion"], document["kind"]]).iter_errors(document)
        assert not [f"{'/'.join(map(str, fault.path))}: {fault.message}" for fault in faults], document["kind"]
    if name == "strimzi":
        assert {document["kind"] for document in custom} == {kind for _, kind in schemas}


@functools.cache
def crd_schemas() -> dict[tuple[str, str], Any]:
    schemas = {}
    for path in sorted(CRDS.glob("*.yaml")):
        crd = yaml.safe_load(path.read_text())
        for version in crd["spec"]["versions"]:
            schema = strict(version["schema"]["openAPIV3Schema"])
            schema["properties"] |= {"metadata": {}, "apiVersion": {}, "kind": {}}
            schemas[f"{crd['spec']['group']}/{version['name']}", crd["spec"]["names"]["kind"]] = schema
    return schemas


def strict(schema: Any) -> Any:
    """Refuse unknown fields, as the server does that prunes them, and understand int-or-string."""
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        schema = {key: value for key, value in schema.items() if key not in ("anyOf", "type")}
        schema["type"] = ["integer", "string"]
    if "properties" in schema:
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema.setdefault("additionalProperties", False)
        schema["properties"] = {name: strict(value) for name, value in schema["properties"].items()}
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            schema[key] = strict(schema[key])
    return schema


# Each with the reason why it does not apply.
CHECKOV_SKIPS = {
    "CKV_K8S_15": "a version's tag never moves: pulling it again would only make a start depend on the registry",
    "CKV_K8S_43": "an image is named by its tag until image.digest is set: a chart cannot know the digest of a build",
}


@pytest.mark.skipif(not CHECKOV.exists(), reason=f"checkov is not at {CHECKOV}")
def test_checkov_finds_nothing_in_what_is_rendered(tmp_path: Path) -> None:
    for name in SETS:
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump_all(documents(rendered(name))))
    report = checkov("kubernetes", tmp_path, "--skip-check", ",".join(CHECKOV_SKIPS))
    assert not failures(report)
    assert report["summary"]["passed"] > 100
    assert report["summary"]["parsing_errors"] == 0


# what the values may be


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"replicas": 9}, "at most one per partition"),
        ({"autoscaling": {"enabled": True, "maxReplicas": 5}}, "at most one per partition"),
        ({"autoscaling": {"enabled": True, "cooldownSeconds": 60}}, "shorter than a recovery"),
        ({"kafka": {"brokers": "kafka"}}, "does not match pattern"),
        ({"kafka": {"brokers": ""}}, "kafka.brokers is needed"),
        ({"kafka": {"brokers": "k:1", "sasl": {"enabled": True}}}, "needs kafka.sasl"),
        ({"image": {"tag": "latest"}}, "schema"),
        ({"replica": 3}, "additional properties"),
        ({"bundle": {"source": "volume"}}, "needs bundle.volume.claimName"),
        ({"bundle": {"source": "url"}}, "needs bundle.url.address"),
        ({"topics": {"create": "strimzi"}}, "needs strimzi.enabled"),
        ({"strimzi": {"enabled": True, "cluster": "events"}}, "set topics.create to strimzi"),
    ],
)
def test_values_that_cannot_work_are_refused_with_the_reason(changes: Values, reason: str) -> None:
    with pytest.raises(helm.HelmError, match=f"(?s){reason}"):
        render(with_values("default", **changes))


def test_every_value_is_in_the_schema_and_in_the_readme() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    readme = (CHART / "README.md").read_text()
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    missing = [path for path in leaves(values) if f"`{path}`" not in readme]
    assert not missing, "not in the table of README.md"
    assert set(values) | {"global"} == set(schema["properties"])
    for path in leaves(values):
        node = schema
        for part in path.split("."):
            node = resolve(schema, node).get("properties", {}).get(part, {})
        assert node, f"{path} is not in values.schema.json"


def leaves(values: Values, above: str = "") -> Iterator[str]:
    for name, value in values.items():
        path = f"{above}{name}"
        if isinstance(value, dict) and value and name not in ("resources", "labels"):
            yield from leaves(value, f"{path}.")
        else:
            yield path


def resolve(schema: Any, node: Any) -> Any:
    return schema["$defs"][node["$ref"].rsplit("/", 1)[1]] if "$ref" in node else node
