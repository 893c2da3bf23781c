"""The commands and the worker speak to a Kafka that asks for a password, TLS or both; refusals are one sentence."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kafka import KafkaAdminClient
from kafka.admin import ScramMechanism, UserScramCredentialUpsertion
from local_kafka import LocalKafka, _free_ports

from worker.app import _credentials
from worker.broker import BrokerError, client_options, tls_context
from worker.settings import Settings, SettingsError, load_settings

ROOT = Path(__file__).parents[2]
PASSWORD = "tulip"
SASL = {"security_protocol": "SASL_PLAINTEXT", "sasl_username": "clicks", "sasl_password": PASSWORD}


def openssl(directory: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, and a certificate of it for 127.0.0.1 that serves the broker and the client."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed, it makes the certificates")
    directory = tmp_path_factory.mktemp("tls")
    subject = ("-subj", "/CN=clicks", "-nodes", "-newkey", "rsa:2048", "-days", "2")
    openssl(directory, "req", "-x509", *subject, "-keyout", "ca.key", "-out", "ca.crt")
    openssl(directory, "req", *subject[:-2], "-keyout", "tls.key", "-out", "tls.csr")
    (directory / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
    signing = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names")
    openssl(directory, "x509", "-req", "-in", "tls.csr", "-out", "tls.crt", *signing)
    return directory


class GuardedKafka(LocalKafka):
    """A node with two more listeners: SASL_PLAINTEXT with SCRAM, and SASL_SSL that also wants a client certificate."""

    def __init__(self, keys: Path) -> None:
        super().__init__()
        self._keys = keys
        self.scram, self.tls = (f"127.0.0.1:{port}" for port in _free_ports(2))

    def _properties(self, node: int) -> str:
        lines = dict(line.split("=", 1) for line in super()._properties(node).splitlines() if line[:1] not in ("", "#"))
        lines["listener.security.protocol.map"] += ",SASL_PLAINTEXT:SASL_PLAINTEXT,SASL_SSL:SASL_SSL"
        for name in ("listeners", "advertised.listeners"):
            lines[name] += f",SASL_PLAINTEXT://{self.scram},SASL_SSL://{self.tls}"
        plain = "org.apache.kafka.common.security.plain.PlainLoginModule"
        scram = "org.apache.kafka.common.security.scram.ScramLoginModule"
        store = self._directory / "keystore.pem"
        store.write_text((self._keys / "tls.key").read_text() + (self._keys / "tls.crt").read_text())
        lines |= {
            "listener.name.sasl_plaintext.sasl.enabled.mechanisms": "SCRAM-SHA-512",
            "listener.name.sasl_ssl.sasl.enabled.mechanisms": "PLAIN",
            "listener.name.sasl_plaintext.scram-sha-512.sasl.jaas.config": f"{scram} required;",
            "listener.name.sasl_ssl.plain.sasl.jaas.config": f'{plain} required user_clicks="{PASSWORD}";',
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": store,
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": self._keys / "ca.crt",
            "listener.name.sasl_ssl.ssl.client.auth": "required",
        }
        return "".join(f"{name}={value}\n" for name, value in lines.items())


@pytest.fixture(scope="module")
def guarded(keys: Path) -> Iterator[GuardedKafka]:
    if os.environ.get("FUNNELCAST_BROKER"):
        pytest.skip("the running broker's listeners are not ours to choose")
    with GuardedKafka(keys) as kafka:
        admin = KafkaAdminClient(bootstrap_servers=kafka.bootstrap)
        admin.alter_user_scram_credentials(
            [UserScramCredentialUpsertion("clicks", ScramMechanism.SCRAM_SHA_512, PASSWORD)]
        )
        admin.close()
        yield kafka


def files(keys: Path) -> dict[str, str]:
    names = {"tls_ca_file": "ca.crt", "tls_cert_file": "tls.crt", "tls_key_file": "tls.key"}
    return {setting: str(keys / name) for setting, name in names.items()}


def run(settings: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    variables = {f"FUNNELCAST_{name.upper()}": value for name, value in settings.items()}
    command = [sys.executable, "-m", "worker.cli", *words]
    return subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | variables,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


@pytest.mark.parametrize("door", ["scram", "tls"])
def test_topics_replay_worker_and_watch_pass_the_guarded_door(
    door: str, guarded: GuardedKafka, keys: Path, tmp_path: Path, unique: Callable[[str], str]
) -> None:
    secure = SASL if door == "scram" else SASL | files(keys) | {"security_protocol": "SASL_SSL"}
    names = ("app_id", "clickstream", "stage_probabilities", "triggers", "dead_letters", "late")
    settings = (
        secure
        | {name: unique(f"{door}-{name.replace('_', '-')}") for name in names}
        | {
            "broker": getattr(guarded, door),
            "sasl_mechanism": "SCRAM-SHA-512" if door == "scram" else "PLAIN",
            "partitions": "1",
            "bundle": "none",
            "store": "memory",
            "http_port": "0",
        }
    )
    log = tmp_path / "clicks.jsonl"
    log.write_text('{"user_id": "7", "event": "product_view", "timestamp": 1511568183000, "item_id": "4"}\n')
    for words in (("topics",), ("replay", str(log)), ("worker", "--burst")):
        done = run(settings, *words)
        assert done.returncode == 0, f"{words}: {done.stderr[-3000:]}"
        assert PASSWORD not in done.stderr + done.stdout
    shown = run(settings, "watch", "--json", "--from-beginning", "--limit", "1")
    assert json.loads(shown.stdout)["value"]["user_id"] == "7", shown.stderr


def test_a_wrong_password_is_refused_in_one_sentence(guarded: GuardedKafka) -> None:
    refused = run(SASL | {"broker": guarded.scram, "sasl_password": "daisy"}, "topics", "--check")
    assert refused.returncode == 2
    assert "with SASL_PLAINTEXT; correct the user, the password" in refused.stderr, refused.stderr
    assert "daisy" not in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_without_security_the_clients_get_the_protocol_only() -> None:
    assert client_options(load_settings()) == {"security_protocol": "PLAINTEXT"}
    assert _credentials(load_settings()) is None


def test_password_and_user_reach_both_kinds_of_clients() -> None:
    settings = load_settings(**SASL, sasl_mechanism="SCRAM-SHA-256")
    assert client_options(settings) == {
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "SCRAM-SHA-256",
        "sasl_plain_username": "clicks",
        "sasl_plain_password": PASSWORD,
    }
    credentials = _credentials(settings)
    assert (credentials.username, credentials.password, credentials.ssl_context) == ("clicks", PASSWORD, None)
    assert (credentials.mechanism.value, credentials.protocol.value) == ("SCRAM-SHA-256", "SASL_PLAINTEXT")


def test_tls_checks_certificate_and_host_name_and_trusts_the_named_authority_only(keys: Path) -> None:
    settings = load_settings(security_protocol="SSL", tls_ca_file=keys / "ca.crt")
    context = tls_context(settings)
    assert context is not None
    assert context.check_hostname
    assert [dict(part[0] for part in ca["subject"])["commonName"] for ca in context.get_ca_certs()] == ["clicks"]
    assert set(client_options(settings)) == {"security_protocol", "ssl_context"}
    assert _credentials(settings).protocol.value == "SSL"


def test_a_file_that_is_no_certificate_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text("roses")
    settings = Settings(security_protocol="SSL", tls_ca_file=tmp_path / "ca.crt")
    with pytest.raises(BrokerError, match=r"cannot be loaded \(.*must be PEM"):
        tls_context(settings)


@pytest.mark.parametrize(
    ("given", "needs"),
    [
        ({"security_protocol": "SASL_SSL"}, "needs FUNNELCAST_SASL_USERNAME and FUNNELCAST_SASL_PASSWORD"),
        ({"sasl_username": "clicks"}, "needs FUNNELCAST_SECURITY_PROTOCOL=SASL_SSL"),
        ({"tls_ca_file": __file__}, "needs FUNNELCAST_SECURITY_PROTOCOL=SSL"),
        ({"security_protocol": "SSL", "tls_ca_file": "/nowhere"}, "TLS_CA_FILE is '/nowhere', expected a file"),
        ({"security_protocol": "SSL", "tls_cert_file": __file__}, "belong together"),
    ],
)
def test_settings_of_security_that_contradict_each_other_are_refused(given: dict[str, str], needs: str) -> None:
    with pytest.raises(SettingsError, match=needs):
        load_settings(**given)
