"""Prometheus and Alertmanager as child processes, with the project's rules made fast, and a webhook that listens."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
import urllib.error
import urllib.parse
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.stack import ROOT, free_port, wait

RULES = sorted((ROOT / "deploy" / "prometheus" / "rules").glob("*.yaml"))
RANGE, HOLD = "20s", "2s"  # what every range and every `for` of the rules becomes
NEEDED = ("prometheus", "prometheus-alertmanager")


def require_programs() -> None:
    """Skip the test where they are not installed."""
    if missing := [name for name in NEEDED if shutil.which(name) is None]:
        pytest.skip(f"{' and '.join(missing)} not installed (Debian: apt-get install {' '.join(NEEDED)})")


def fast(rules: str) -> str:
    """Shorten the ranges and the holding times of a rules file."""
    return re.sub(r"^( +for:) \w+$", rf"\1 {HOLD}", re.sub(r"\[\d+[smh]\]", f"[{RANGE}]", rules), flags=re.MULTILINE)


class Webhook:
    """Keeps every alert that Alertmanager sends."""

    def __init__(self) -> None:
        self.alerts: list[dict[str, Any]] = []
        alerts = self.alerts

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                alerts.extend(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["alerts"])
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}/"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def got(self, name: str, status: str, **labels: str) -> list[dict[str, Any]]:
        """Return the alerts of this name and status, firing or resolved, with these labels."""
        return [
            alert
            for alert in list(self.alerts)
            if alert["labels"]["alertname"] == name
            and alert["status"] == status
            and labels.items() <= alert["labels"].items()
        ]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Monitoring:
    """Scrapes the given jobs every second; `targets` are host:port by job."""

    def __init__(self, directory: Path, targets: dict[str, list[str]]) -> None:
        require_programs()
        self.webhook = Webhook()
        self._directory = directory
        self._ports = {name: free_port() for name in NEEDED}
        self._processes: list[subprocess.Popen[bytes]] = []
        self._configure(targets)
        data = directory / "prometheus-data"
        try:
            self._run(
                "prometheus-alertmanager",
                "--cluster.listen-address=",
                f"--config.file={directory / 'alertmanager.yaml'}",
                f"--storage.path={directory / 'alertmanager-data'}",
            )
            self._run("prometheus", f"--config.file={directory / 'prometheus.yaml'}", f"--storage.tsdb.path={data}")
            wait(lambda: all(map(self._is_ready, NEEDED)), 30, self._logs)
        except BaseException:
            self.close()
            raise

    def _configure(self, targets: dict[str, list[str]]) -> None:
        for path in RULES:
            (self._directory / path.name).write_text(fast(path.read_text()))
        manager = f"127.0.0.1:{self._ports['prometheus-alertmanager']}"
        prometheus = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(self._directory / path.name) for path in RULES],
            "alerting": {"alertmanagers": [{"static_configs": [{"targets": [manager]}]}]},
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": addresses}]} for job, addresses in targets.items()
            ],
        }
        route = {
            "receiver": "webhook",
            "group_by": ["alertname"],
            "group_wait": "1s",
            "group_interval": "1s",
            "repeat_interval": "1h",
        }
        receiver = {"name": "webhook", "webhook_configs": [{"url": self.webhook.address, "send_resolved": True}]}
        (self._directory / "prometheus.yaml").write_text(yaml.safe_dump(prometheus))
        (self._directory / "alertmanager.yaml").write_text(yaml.safe_dump({"route": route, "receivers": [receiver]}))

    def _run(self, name: str, *arguments: str) -> None:
        with (self._directory / f"{name}.log").open("wb") as log:
            command = [name, f"--web.listen-address=127.0.0.1:{self._ports[name]}", *arguments]
            self._processes.append(subprocess.Popen(command, stdout=log, stderr=log, cwd=self._directory))

    def _is_ready(self, name: str) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._ports[name]}/-/ready", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def _logs(self) -> str:
        return "\n".join((self._directory / f"{name}.log").read_text()[-2000:] for name in NEEDED)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the series that the expression gives now."""
        return self._ask("query", query=expression)

    def query_range(self, expression: str, start: float, end: float, step: float = 2.0) -> list[dict[str, Any]]:
        """Return the series that the expression gave between two times."""
        return self._ask("query_range", query=expression, start=start, end=end, step=step)

    def value(self, expression: str) -> float:
        """Return the one number that the expression gives now."""
        [series] = self.query(expression)
        return float(series["value"][1])

    def by(self, label: str, expression: str) -> dict[str, float]:
        """Return numbers by the value of a label."""
        return {series["metric"][label]: float(series["value"][1]) for series in self.query(expression)}

    def _ask(self, kind: str, **parameters: object) -> list[dict[str, Any]]:
        address = f"http://127.0.0.1:{self._ports['prometheus']}/api/v1/{kind}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(address, timeout=10) as answer:
                return list(json.load(answer)["data"]["result"])
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{parameters}: {error.read().decode()}") from None

    def scraped_since(self, moment: float) -> None:
        """Wait until every target was scraped after this time."""
        oldest = 'min(timestamp(up{job=~".*funnelcast.*"}))'
        wait(lambda: bool(found := self.query(oldest)) and float(found[0]["value"][1]) > moment + 1, 20, self._logs)

    def close(self) -> None:
        for process in self._processes:
            process.terminate()
            process.wait(20)
        self.webhook.close()
