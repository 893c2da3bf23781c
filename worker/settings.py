"""Settings: the environment (FUNNELCAST_*) and the command line's overrides in, one frozen and checked `Settings` out.

Read once at start; rooms receive values, not this object.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import pydantic
from pydantic import Field, SecretStr, StringConstraints
from pydantic_settings import BaseSettings, SettingsConfigDict

from model.contract.errors import FunnelcastError

PREFIX = "FUNNELCAST_"
# Variables that belong to the tests and tools; anything else that starts with the prefix must be a field.
TOOLING = frozenset({"FUNNELCAST_BOUNDSCHECK", "FUNNELCAST_GOLDEN"})
# A directory of files named like these variables, for what should not stand in an environment: mounted secrets.
SECRETS_DIR = "FUNNELCAST_SECRETS_DIR"

Topic = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,200}$")]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,100}$")]
Broker = Annotated[str, StringConstraints(pattern=r"^[^\s:,/]+:\d{1,5}(,[^\s:,/]+:\d{1,5})*$")]


class SettingsError(FunnelcastError):
    """A setting that the worker cannot run with."""


class Settings(BaseSettings):
    """Everything an operator may set."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", env_ignore_empty=True)

    broker: Broker = Field("127.0.0.1:9092", description="Kafka bootstrap servers, host:port, several by commas")
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="how Kafka is spoken to"
    )
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        "SCRAM-SHA-512", description="how the user proves itself, with SASL_*"
    )
    sasl_username: str = Field("", max_length=200, description="Kafka user, with SASL_*")
    sasl_password: SecretStr = Field(SecretStr(""), description="the user's password, with SASL_*")
    tls_ca_file: Path | None = Field(None, description="PEM file of the authorities to trust; empty: the system's")
    tls_cert_file: Path | None = Field(None, description="PEM file of the client's certificate; empty: none")
    tls_key_file: Path | None = Field(None, description="PEM file of the client's private key; empty: none")
    app_id: Name = Field("funnelcast", description="consumer group and prefix of tables and transactional ids")
    clickstream: Topic = Field("clickstream", description="topic of click events, keyed by user id")
    stage_probabilities: Topic = Field("funnel.stage-probabilities", description="topic of stage probabilities")
    triggers: Topic = Field("funnel.triggers", description="topic of campaign triggers")
    dead_letters: Topic = Field("funnel.dead-letters", description="topic of records that could not be decoded")
    late: Topic = Field("funnel.late", description="topic of events older than the lateness bound")
    explanations: Topic = Field("funnel.explanations", description="topic of explanations; there if any are wanted")
    partitions: int = Field(4, ge=1, le=10_000, description="partitions of each topic")
    replication_factor: int = Field(1, ge=1, le=10, description="replicas of each topic that `topics` creates")

    bundle: str = Field("", description="bundle directory; empty: the shipped bundle; none: no model, no probabilities")
    funnel: Path | None = Field(None, description="funnel.yaml, what counts as which stage; empty: the shipped funnel")
    session_gap_seconds: float = Field(1800.0, ge=1, le=86_400, description="silence that ends a session")
    lateness_seconds: float = Field(
        60.0, ge=0, le=86_400, description="how far behind its user's newest event one may be"
    )
    campaigns: Path | None = Field(None, description="campaigns.yaml; empty: the shipped campaigns")
    holdout_salt: SecretStr = Field(SecretStr("funnelcast"), min_length=1, description="salt of the holdout draw")

    state_dir: Path = Field(Path("state"), description="directory of the RocksDB store")
    store: Literal["rocksdb", "memory"] = Field("rocksdb", description="where the user-sequences table lives")

    batch_size: int = Field(1024, ge=1, le=4096, description="users that close a micro-batch")
    batch_wait_seconds: float = Field(
        0.005, ge=0, le=10, description="longest wait of the oldest click for others that go with it"
    )
    latency_target_seconds: float = Field(
        0.1, ge=0.001, le=60, description="p99 of an answer; where it is tight, micro-batches are smaller and wait less"
    )
    max_waiting_users: int = Field(4096, ge=1, le=1 << 20, description="users waiting for scores that are too many")
    overload: Literal["wait", "degrade"] = Field(
        "wait", description="when scores would come too late: wait, which delays answers, or answer with base rates"
    )
    hot_state_bytes: int = Field(
        256 << 20, ge=0, le=1 << 44, description="memory of users' hot state; 0: score whole sequences"
    )
    inference_threads: int = Field(2, ge=1, le=256, description="threads that share one run of the network")
    max_chunk: int = Field(2048, ge=1, le=65_536, description="most records that are folded together")
    transaction_chunks: int = Field(16, ge=1, le=1024, description="most chunks of a partition in one transaction")
    session_timeout_seconds: float = Field(8.0, ge=1, le=300, description="silence that ends a membership")
    instance_id: str = Field("", max_length=200, description="static group member id (the pod's name); empty: dynamic")

    explain_one_in: int = Field(
        0, ge=0, le=1_000_000_000, description="explain one in that many scored answers, at low priority; 0: none"
    )

    max_value_bytes: int = Field(1 << 20, ge=1024, le=1 << 30, description="largest event that is decoded")
    max_clock_skew_seconds: int = Field(300, ge=0, le=86_400, description="how far an event may lie in the future")

    http_host: str = Field("127.0.0.1", min_length=1, description="address of /live, /ready and /metrics")
    http_port: int = Field(8080, ge=0, le=65_535, description="port of /live, /ready and /metrics; 0: any free one")
    tracing_endpoint: Annotated[str, StringConstraints(pattern=r"^(https?://\S+)?$")] = Field(
        "", description="OTLP/HTTP address for traces, such as http://collector:4318/v1/traces; empty: no tracing"
    )
    tracing_share: float = Field(
        0.01, ge=0, le=1, description="share of the chunks that are traced, beside those with a traced click"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level that is logged")

    def describe(self) -> str:
        """List every setting, secrets masked, one per line."""
        return "\n".join(f"{name} = {value}" for name, value in self)


def load_settings(**overrides: object) -> Settings:
    """Read and check the settings; an override of None counts as not given."""
    given = {name: value for name, value in overrides.items() if value is not None} | {"_secrets_dir": _secrets_dir()}
    faults = list(_unknown_variables(os.environ))
    try:
        settings = Settings(**given)  # type: ignore[arg-type]
    except pydantic.ValidationError as error:
        faults = [*map(_fault, error.errors()), *faults]
    else:
        faults += _contradictions(settings)
    if faults:
        raise SettingsError(f"cannot start with these settings: {'; '.join(faults)}; correct or unset them")
    return settings


def _secrets_dir() -> Path | None:
    name = os.environ.get(SECRETS_DIR, "")
    if name and not Path(name).is_dir():
        raise SettingsError(
            f"cannot start: {SECRETS_DIR} is {name!r}, expected a directory; mount it or unset the variable"
        )
    return Path(name) if name else None


def _contradictions(settings: Settings) -> Iterable[str]:
    """Word what each field allows and all together do not."""
    protocol = settings.security_protocol
    if protocol.startswith("SASL_") and not (settings.sasl_username and settings.sasl_password.get_secret_value()):
        yield f"{PREFIX}SECURITY_PROTOCOL is {protocol}, which needs {PREFIX}SASL_USERNAME and {PREFIX}SASL_PASSWORD"
    if settings.sasl_username and not protocol.startswith("SASL_"):
        yield f"{PREFIX}SASL_USERNAME is set, which needs {PREFIX}SECURITY_PROTOCOL=SASL_SSL or SASL_PLAINTEXT"
    files = {name: getattr(settings, name) for name in ("tls_ca_file", "tls_cert_file", "tls_key_file")}
    for name, path in files.items():
        if path is not None and not protocol.endswith("SSL"):
            yield f"{PREFIX}{name.upper()} is set, which needs {PREFIX}SECURITY_PROTOCOL=SSL or SASL_SSL"
        elif path is not None and not path.is_file():
            yield f"{PREFIX}{name.upper()} is '{path}', expected a file"
    if (settings.tls_cert_file is None) != (settings.tls_key_file is None):
        yield f"{PREFIX}TLS_CERT_FILE and {PREFIX}TLS_KEY_FILE belong together, one of them is missing"


def _unknown_variables(names: Iterable[str]) -> Iterable[str]:
    known = {PREFIX + field.upper() for field in Settings.model_fields} | TOOLING | {SECRETS_DIR}
    for name in sorted(names):
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            yield f"{name} is not a setting"


def _fault(error: object) -> str:
    """Word one pydantic error as: which setting, what was found, what was expected."""
    assert isinstance(error, dict)
    field = str(error["loc"][0]) if error["loc"] else "settings"
    if error["type"] == "extra_forbidden":
        return f"{field} is not a setting"
    secret = field in Settings.model_fields and Settings.model_fields[field].annotation is SecretStr
    found = "a secret" if secret else repr(error["input"])
    description = Settings.model_fields[field].description if field in Settings.model_fields else ""
    return f"{PREFIX}{field.upper()} is {found} ({description}): {_lower_first(str(error['msg']))}"


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]


def check_state_dir(path: Path) -> None:
    """Create the state directory and prove that it can be written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path, prefix=".probe-") as probe:
            probe.write(b"x" * 4096)
    except OSError as error:
        raise SettingsError(
            f"cannot write to the state directory {path} ({error.strerror}), the worker keeps its table there; "
            f"make it writable or name another one with {PREFIX}STATE_DIR"
        ) from error
