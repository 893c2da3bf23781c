"""Fetch a bundle: the URL of a tar archive in, the bundle's directory out, for an init container in front of a worker.

The archive is what `tar -czf bundle.tar.gz -C runs my-bundle` makes; any object store serves it by HTTPS.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.parse import urlsplit

from model.contract.errors import FunnelcastError

CONTRACT = "contract.json"  # lies in the bundle's directory, wherever that is in the archive
TIMEOUT_SECONDS = 60.0  # of one read
LARGEST_BYTES = 4 << 30  # a bundle has some MB; a wrong URL shall not fill the disk
PIECE_BYTES = 1 << 20


class FetchError(FunnelcastError):
    """A bundle that cannot be fetched."""


def fetch(url: str, into: Path, sha256: str = "", authorization: str = "") -> list[str]:
    """Put the files of the archived bundle into a directory; return their names."""
    with tempfile.TemporaryFile(dir=into) as archive:
        digest = _download(url, archive, authorization)
        if sha256 and digest != sha256.lower():
            raise FetchError(f"{shown(url)} has the sha256 {digest}, expected {sha256}; correct one of them")
        archive.seek(0)
        try:
            with tarfile.open(fileobj=archive) as members:
                return list(_unpack(members, into, url))
        except tarfile.TarError as error:
            raise FetchError(f"{shown(url)} is no tar archive ({error}); make it with tar -czf") from error


def shown(url: str) -> str:
    """Leave out of a URL what may be a secret: user, password and query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}{parts.path}"


def _download(url: str, target: IO[bytes], authorization: str) -> str:
    if urlsplit(url).scheme not in ("https", "http"):
        raise FetchError(f"{shown(url)} cannot be fetched, expected https://; object stores give such addresses")
    request = urllib.request.Request(url)
    if authorization:
        request.add_unredirected_header("Authorization", authorization)
    digest, size = hashlib.sha256(), 0
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
            while piece := answer.read(PIECE_BYTES):
                size += len(piece)
                if size > LARGEST_BYTES:
                    raise FetchError(f"{shown(url)} has more than {LARGEST_BYTES:,} bytes; name a bundle's archive")
                digest.update(piece)
                target.write(piece)
    except OSError as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise FetchError(f"{shown(url)} cannot be fetched ({reason}); correct the address or its access") from error
    return digest.hexdigest()


def _unpack(archive: tarfile.TarFile, into: Path, url: str) -> Iterator[str]:
    """Write the regular files beside the contract, under their last names: nothing can leave the directory."""
    members = [(PurePosixPath(member.name), member) for member in archive if member.isfile()]
    folders = [path.parent for path, _ in members if path.name == CONTRACT]
    if len(folders) != 1:
        raise FetchError(f"{shown(url)} holds {len(folders)} bundles, expected one directory with a {CONTRACT}")
    for path, member in members:
        source = archive.extractfile(member)
        if path.parent == folders[0] and source is not None:
            with (into / path.name).open("wb") as target:
                shutil.copyfileobj(source, target)
            yield path.name


def main() -> int:
    """Fetch as the arguments say; what is secret is read from files."""
    parser = argparse.ArgumentParser(description="Fetch a bundle's tar archive and unpack it.")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--url", help="https address of the archive")
    where.add_argument("--url-file", type=Path, metavar="FILE", help="file that holds the address, where it is signed")
    parser.add_argument("--into", type=Path, required=True, metavar="DIR", help="directory of the bundle")
    parser.add_argument("--sha256", default="", help="of the archive; nothing else is taken")
    parser.add_argument("--authorization-file", type=Path, metavar="FILE", help="file with the Authorization header")
    given = parser.parse_args()
    try:
        url = given.url or given.url_file.read_text().strip()
        authorization = given.authorization_file.read_text().strip() if given.authorization_file else ""
        names = fetch(url, given.into, given.sha256, authorization)
    except (FetchError, OSError) as error:
        print(f"funnelcast: {error}", file=sys.stderr)
        return 2
    print(f"{len(names)} files of {shown(url)} are in {given.into}: {', '.join(sorted(names))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
