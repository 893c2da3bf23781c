"""The chart, rendered for its value sets, as documents to look into."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

helm = pytest.importorskip("helm_python", reason="helm-python-sdk is not installed")

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm" / "funnelcast"
RULES = ROOT / "deploy" / "prometheus" / "rules"
CRDS = ROOT / "tests" / "deploy" / "schemas" / "crds"
SETS = sorted(path.name.removesuffix("-values.yaml") for path in (CHART / "ci").glob("*-values.yaml"))
KUBERNETES = [f"1.{minor}" for minor in range(30, 38)]

Values = dict[str, Any]
Document = dict[str, Any]


def values_of(name: str) -> Values:
    return dict(yaml.safe_load((CHART / "ci" / f"{name}-values.yaml").read_text()))


def render(values: Values, *, name: str = "shop") -> dict[str, str]:
    with helm.Chart.load(str(CHART)) as chart:
        return dict(chart.render(values, name=name, namespace="prod"))


@functools.cache
def rendered(name: str) -> dict[str, str]:
    return render(values_of(name))


def documents(texts: dict[str, str]) -> list[Document]:
    return [
        document
        for path, text in sorted(texts.items())
        if path.endswith(".yaml")
        for document in yaml.safe_load_all(text)
        if document
    ]


def find(name: str | Values, kind: str) -> Document:
    texts = rendered(name) if isinstance(name, str) else render(name)
    (found,) = [document for document in documents(texts) if document["kind"] == kind]
    return deepcopy(found)


def pods(name: str) -> Iterator[Document]:
    for document in documents(rendered(name)):
        if document["kind"] in ("StatefulSet", "Job"):
            yield document["spec"]["template"]


def worker(name: str | Values) -> Document:
    (container,) = find(name, "StatefulSet")["spec"]["template"]["spec"]["containers"]
    return dict(container)


def environment(container: Document) -> dict[str, Any]:
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container["env"]}


def with_values(name: str, **changes: Any) -> Values:
    return values_of(name) | changes
