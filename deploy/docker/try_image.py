"""Build an image without a container engine, and run it next to a local Kafka as a cluster would: what it takes.

    python deploy/docker/try_image.py [--gpu]

Needs root and Debian's buildah, runc and mmdebstrap; the base is Debian's Python, not the official image. In: the
working tree. Out: one JSON object: sizes, times, and what the container may do. Fails where a promise is broken. The
GPU image is built and started in the same way; without a GPU it answers on the CPU, and of the libraries that it needs
for one only the driver's may be missing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE.parent / "kafka")]

from local_kafka import LocalKafka  # noqa: E402

BASE = "localhost/python:3.11-slim-bookworm"
FILES = {"localhost/funnelcast:try": "Dockerfile", "localhost/funnelcast:try-gpu": "Dockerfile.gpu"}
DEBIAN = ("--variant=minbase", "--include=python3,python3-venv,ca-certificates", "bookworm")
PASSED_IN = ("/etc/pip.conf", "/etc/ssl/certs")  # how this machine reaches its package index
NEEDED = ("buildah", "runc", "mmdebstrap")
CUDA = "lib/python3.11/site-packages/onnxruntime/capi/libonnxruntime_providers_cuda.so"
DRIVER = ["libcuda.so.1"]
PORT = 18080
PATIENCE_SECONDS = 120
ASKED = """
import json, os
import onnxruntime
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
try:
    open("/opt/written", "w")
except OSError as error:
    refused = error.strerror
print(json.dumps({"uid": os.getuid(), "root": refused, "capabilities": int(status["CapEff"], 16),
                  "providers": onnxruntime.get_available_providers()}))
"""


def out(*command: str | Path, **options: Any) -> str:
    return subprocess.run(
        list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True, **options
    ).stdout.strip()


def build(tag: str) -> float:
    """Make base and image; return the seconds that the image took."""
    if not out("buildah", "images", "--quiet", "--filter", f"reference={BASE}"):
        with tempfile.TemporaryDirectory() as folder:
            out("mmdebstrap", "--quiet", *DEBIAN, f"{folder}/base.tar")
            container = out("buildah", "from", "scratch")
            out("buildah", "add", container, f"{folder}/base.tar")
            out("buildah", "commit", "--quiet", "--rm", container, BASE)
    mounts = [f"--volume={path}:{path}:ro" for path in PASSED_IN if Path(path).exists()]
    options = (
        "--pull-never",
        "--format=docker",
        "--network=host",
        *mounts,
        f"--file={HERE / FILES[tag]}",
        f"--tag={tag}",
    )
    started = time.monotonic()
    out("buildah", "bud", *options, ROOT, env=os.environ | {"BUILDAH_ISOLATION": "chroot"})
    return time.monotonic() - started


@contextmanager
def mounted(tag: str) -> Iterator[Path]:
    container = out("buildah", "from", "--pull-never", tag)
    try:
        yield Path(out("buildah", "mount", container))
    finally:
        out("buildah", "rm", container)


def bundle(folder: Path, root: Path, image: dict[str, Any], command: str, broker: str) -> Path:
    """Write an OCI bundle: the image's user, entry and variables, a read-only root, no capability, a tmpfs at /tmp."""
    out("runc", "spec", cwd=folder)
    spec = json.loads((folder / "config.json").read_text())
    uid, gid = map(int, image["User"].split(":"))
    spec["root"] = {"path": str(root), "readonly": True}
    spec["process"] |= {
        "terminal": False,
        "user": {"uid": uid, "gid": gid},
        "args": [*image["Entrypoint"], command],
        "env": [
            *image["Env"],
            *(f"FUNNELCAST_{name}" for name in (f"BROKER={broker}", f"HTTP_PORT={PORT}", "INSTANCE_ID=try-0")),
        ],
        "cwd": image["WorkingDir"],
        "noNewPrivileges": True,
        "capabilities": {},
    }
    (folder / "state").mkdir()
    os.chown(folder / "state", uid, gid)
    tmp = {
        "destination": "/tmp",
        "type": "tmpfs",
        "source": "tmpfs",
        "options": ["nosuid", "nodev", "noexec", "mode=1777"],
    }
    state = {"destination": "/var/lib/funnelcast", "type": "bind", "source": str(folder / "state"), "options": ["bind"]}
    spec["mounts"] = [mount for mount in spec["mounts"] if mount["type"] != "cgroup"] + [tmp, state]
    linux = spec["linux"]
    linux.pop("resources", None)
    linux["namespaces"] = [space for space in linux["namespaces"] if space["type"] not in ("network", "cgroup")]
    (folder / "config.json").write_text(json.dumps(spec))
    return folder


def missing_libraries(root: Path, image: dict[str, Any]) -> list[str]:
    """Return what the loader does not find of what onnxruntime and cuDNN need on a GPU."""
    ours = Path("/opt/funnelcast")
    files = [ours / CUDA, *(Path("/") / path.relative_to(root) for path in root.glob("opt/funnelcast/cuda/libcudnn*"))]
    said = out("chroot", root, "env", *image["Env"], "ldd", *files)
    return sorted({line.split()[0] for line in said.splitlines() if "not found" in line})


def answers(path: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{PORT}{path}", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def serve(folder: Path, health: list[str]) -> dict[str, Any]:
    """Start the worker, ask it and look at it from inside, stop it; return what was found."""
    name, started = f"funnelcast-{os.getpid()}", time.monotonic()
    worker = subprocess.Popen(["runc", "run", "--bundle", str(folder), name])
    found: dict[str, Any] = {}
    try:
        for path in ("/live", "/ready"):
            while not answers(path):
                if worker.poll() is not None or time.monotonic() - started > PATIENCE_SECONDS:
                    raise SystemExit(f"the worker did not answer {path}")
                time.sleep(0.2)
            found[f"{path[1:]}_seconds"] = round(time.monotonic() - started, 1)
        out("runc", "exec", name, *health)
        found |= json.loads(out("runc", "exec", name, health[0], "-c", ASKED))
    finally:
        if worker.poll() is None:
            out("runc", "kill", name, "TERM")
    started = time.monotonic()
    found["exit_code"] = worker.wait(60)
    return found | {"drain_seconds": round(time.monotonic() - started, 1)}


def main() -> int:
    parser = argparse.ArgumentParser(description="Build an image and run it next to a local Kafka.")
    parser.add_argument("--gpu", action="store_true", help="the image for NVIDIA GPUs")
    tag = list(FILES)[parser.parse_args().gpu]
    if missing := [program for program in NEEDED if shutil.which(program) is None]:
        print(f"needs {', '.join(missing)} (Debian: apt-get install {' '.join(NEEDED)})", file=sys.stderr)
        return 2
    found: dict[str, Any] = {"build_seconds": round(build(tag), 1)}
    image = json.loads(out("buildah", "inspect", "--type=image", tag))["Docker"]["config"]
    health = image["Healthcheck"]["Test"][1:]
    with mounted(tag) as root, LocalKafka() as kafka, tempfile.TemporaryDirectory() as text:
        megabytes = {"image_megabytes": root, "ours_megabytes": root / "opt" / "funnelcast"}
        found |= {name: int(out("du", "-s", "-BM", path).split("M")[0]) for name, path in megabytes.items()}
        folders = [Path(text, name) for name in ("topics", "worker")]
        for folder in folders:
            folder.mkdir()
            bundle(folder, root, image, folder.name, kafka.bootstrap)
        out("runc", "run", "--bundle", folders[0], f"funnelcast-topics-{os.getpid()}")
        if tag.endswith("-gpu"):
            found["missing_libraries"] = missing_libraries(root, image)
        found |= serve(folders[1], health)
    print(json.dumps(found, indent=1))
    kept = found["uid"] == 10001 and found["root"] == "Read-only file system" and found["capabilities"] == 0
    kept = kept and found.get("missing_libraries", DRIVER) == DRIVER
    return 0 if kept and found["exit_code"] == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
