"""A bundle comes from a URL whole and as named, or not at all; nothing is written beside its directory."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from model.contract.bundle import SHIPPED, load_bundle
from worker import fetch as room
from worker.fetch import FetchError, fetch

TOKEN = "Bearer tulip"


def archive(*members: tuple[str, bytes | Path]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, content in members:
            data = content if isinstance(content, bytes) else content.read_bytes()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return stream.getvalue()


@pytest.fixture(scope="module")
def store() -> Iterator[dict[str, bytes]]:
    """An object store on a free port: what stands in the dictionary is served under its name; "" is its address."""
    files: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.split("?")[0].lstrip("/")
            wanted = self.headers["Authorization"] == TOKEN if name.startswith("closed") else True
            if not wanted or name not in files:
                self.send_error(404 if wanted else 403)
                return
            self.send_response(200)
            self.end_headers()
            self.wfile.write(files[name])

        def log_message(self, format: str, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        files[""] = f"http://127.0.0.1:{server.server_address[1]}".encode()
        yield files
        server.shutdown()


def test_a_fetched_bundle_is_the_one_that_was_packed(store: dict[str, bytes], tmp_path: Path) -> None:
    names = [path for path in SHIPPED.iterdir() if path.is_file()]
    store["good.tar.gz"] = archive(*[(f"runs/mine/{path.name}", path) for path in names], ("runs/notes", b"no"))
    digest = hashlib.sha256(store["good.tar.gz"]).hexdigest()
    done = fetch(f"{store[''].decode()}/good.tar.gz", tmp_path, digest)
    assert sorted(done) == sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in names)
    assert load_bundle(tmp_path).model_sha256 == load_bundle(SHIPPED).model_sha256


def test_no_member_leaves_the_directory(store: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    store["evil.tar.gz"] = archive(("b/contract.json", b"{}"), ("b/../../escaped", b"x"), ("/tmp/escaped", b"x"))
    assert fetch(f"{store[''].decode()}/evil.tar.gz", tmp_path / "bundle") == ["contract.json"]
    assert [path.name for path in tmp_path.rglob("*")] == ["bundle", "contract.json"]


@pytest.mark.parametrize(
    ("name", "content", "sha256", "reason"),
    [
        ("other.tar.gz", archive(("b/contract.json", b"{}")), "0" * 64, "has the sha256"),
        ("page.html", b"<html>", "", "no tar archive"),
        ("empty.tar.gz", archive(("b/readme", b"")), "", "holds 0 bundles"),
        ("two.tar.gz", archive(("a/contract.json", b""), ("b/contract.json", b"")), "", "holds 2 bundles"),
        ("missing", None, "", "cannot be fetched"),
        ("closed.tar.gz", archive(("b/contract.json", b"{}")), "", "cannot be fetched"),
    ],
)
def test_what_is_not_the_bundle_is_refused_and_leaves_nothing(
    name: str, content: bytes | None, sha256: str, reason: str, store: dict[str, bytes], tmp_path: Path
) -> None:
    if content is not None:
        store[name] = content
    with pytest.raises(FetchError, match=reason) as refused:
        fetch(f"{store[''].decode()}/{name}?signature=tulip", tmp_path, sha256)
    assert "tulip" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_this_machine_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="expected https"):
        fetch("file:///etc/passwd", tmp_path)


def test_an_endless_answer_is_cut(store: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store["endless"] = bytes(4096)
    monkeypatch.setattr(room, "LARGEST_BYTES", 4095)
    with pytest.raises(FetchError, match="more than 4,095 bytes"):
        fetch(f"{store[''].decode()}/endless", tmp_path)


def test_the_command_reads_secrets_from_files(store: dict[str, bytes], tmp_path: Path) -> None:
    store["closed.tar.gz"] = archive(("b/contract.json", b"{}"))
    (tmp_path / "url").write_text(f"{store[''].decode()}/closed.tar.gz?signature=tulip\n")
    (tmp_path / "authorization").write_text(f"{TOKEN}\n")
    (tmp_path / "bundle").mkdir()
    words = ["--url-file", tmp_path / "url", "--authorization-file", tmp_path / "authorization"]
    command = [sys.executable, "-m", "worker.fetch", *map(str, words), "--into", str(tmp_path / "bundle")]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 files of http://127.0.0.1/closed.tar.gz" in done.stdout
    assert "tulip" not in done.stdout
