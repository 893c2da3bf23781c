"""Pictures of the console and of the dashboards' queries: real clicks through two workers, four PNGs beside this file.

    python deploy/docs/pictures.py [--rate 50] [--seconds 120] [--out DIR]

Needs Debian's prometheus, prometheus-alertmanager and chromium-headless-shell, and a quiet machine: a loaded one shows
red latencies.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
from PIL import Image

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "deploy" / "kafka")]

from local_kafka import LocalKafka  # noqa: E402

from model.datasets import LogOptions, read_log  # noqa: E402
from tests.support import pictures  # noqa: E402
from tests.support.clicks import EXCERPT  # noqa: E402
from tests.support.monitoring import Monitoring  # noqa: E402
from tests.support.stack import Stack, free_port, wait  # noqa: E402

DASHBOARDS = sorted((ROOT / "deploy" / "grafana" / "dashboards").glob("*.json"))
CONSOLE_SIZE = "1225,1000"
SETTLED_SECONDS, SPARE_SECONDS = 40, 15  # before the pictures' time, and while they are taken
COLOURS = 64


async def photograph(debugger: int, out: Path) -> None:
    """Ask a browser for a picture of the page that it shows."""
    with urllib.request.urlopen(f"http://127.0.0.1:{debugger}/json", timeout=10) as answer:
        (page,) = [tab for tab in json.load(answer) if tab["type"] == "page"]
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0) as ws,
    ):
        await ws.send_json({"id": 1, "method": "Page.captureScreenshot"})
        async for message in ws:
            if (said := message.json()).get("id") == 1:
                out.write_bytes(base64.b64decode(said["result"]["data"]))
                return


def watch(address: str, folder: Path) -> tuple[subprocess.Popen[bytes], int]:
    """Open a page in a browser; return it and the port of its debugger."""
    port = free_port()
    command = [
        pictures.BROWSER, "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}", f"--window-size={CONSOLE_SIZE}",
        f"--remote-debugging-port={port}", "--remote-allow-origins=*", "--hide-scrollbars", address,
    ]  # fmt: skip
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, start_new_session=True, **quiet), port


def dashboards(monitoring: Monitoring, started: float, folder: Path) -> None:
    """Draw every dashboard as it would be for this time."""
    ended = time.time()
    seconds = round(ended - started)

    def ask(expression: str) -> list[dict[str, Any]]:
        query = expression.replace("$job", ".*").replace("$__rate_interval", "20s")
        query = query.replace("$__range", f"{seconds}s").replace("[1h]", f"[{seconds}s]")
        return monitoring.query_range(query, started, ended)

    for path in DASHBOARDS:
        pictures.take(json.loads(path.read_text()), ask, folder / f"{path.stem}.png")


def run(stack: Stack, rate: float, seconds: float, folder: Path) -> None:
    """Let clicks run through two workers, and take the pictures while they run."""
    clicks = sorted((event for _, event in read_log(EXCERPT, "taobao", LogOptions())), key=lambda e: e.timestamp)
    clicks = clicks[: int(rate * (SETTLED_SECONDS + seconds + SPARE_SECONDS))]
    ports = {tag: free_port() for tag in "ab"}
    monitoring = Monitoring(folder, {"funnelcast": [f"127.0.0.1:{port}" for port in ports.values()]})
    browser = None
    try:
        for tag, port in ports.items():
            stack.start(tag, FUNNELCAST_HTTP_PORT=str(port))
            stack.ports[tag] = port
        wait(lambda: all(map(stack.is_ready, ports)), 120, lambda: stack.log("a")[-2000:])
        producing = stack.produce_in_background(clicks, rate)
        time.sleep(SETTLED_SECONDS)
        started = time.time()
        browser, debugger = watch(f"http://127.0.0.1:{ports['a']}/", folder / "browser-of-the-console")
        time.sleep(seconds)
        asyncio.run(photograph(debugger, folder / "console.png"))
        dashboards(monitoring, started, folder)
        producing.join()
    finally:
        if browser is not None:
            os.killpg(browser.pid, signal.SIGKILL)  # Debian's is a script that starts it
            browser.wait()
        monitoring.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=50, help="clicks per second")
    parser.add_argument("--seconds", type=float, default=120, help="that the pictures show")
    parser.add_argument("--out", type=Path, default=HERE)
    given = parser.parse_args()
    suffix = uuid4().hex[:8]
    with LocalKafka() as kafka, tempfile.TemporaryDirectory(prefix="funnelcast-pictures-") as text:
        folder = Path(text)
        stack = Stack(kafka.bootstrap, lambda name: f"{name}-{suffix}", folder)
        try:
            run(stack, given.rate, given.seconds, folder)
        finally:
            stack.close()
        for name in ("console", *(path.stem for path in DASHBOARDS)):
            Image.open(folder / f"{name}.png").convert("RGB").quantize(COLOURS).save(given.out / f"{name}.png")


if __name__ == "__main__":
    main()
