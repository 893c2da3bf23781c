"""Wrong settings are refused in one sentence that names every one of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from worker.settings import PREFIX, TOOLING, Settings, SettingsError, check_state_dir, load_settings


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(PREFIX):
            monkeypatch.delenv(name)


def test_defaults_are_valid_and_every_setting_is_described() -> None:
    assert load_settings().broker == "127.0.0.1:9092"
    assert all(field.description for field in Settings.model_fields.values())


def test_environment_is_read_and_overrides_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUNNELCAST_BROKER", "kafka-1:9092,kafka-2:9092")
    monkeypatch.setenv("FUNNELCAST_BATCH_SIZE", "32")
    monkeypatch.setenv("FUNNELCAST_CAMPAIGNS", "")
    settings = load_settings(batch_size=8, store=None)
    assert settings.broker == "kafka-1:9092,kafka-2:9092"
    assert (settings.batch_size, settings.store, settings.campaigns) == (8, "rocksdb", None)


def test_every_bad_field_and_unknown_variable_is_named_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUNNELCAST_BROKER", "nowhere")
    monkeypatch.setenv("FUNNELCAST_BATCH_SIZE", "many")
    monkeypatch.setenv("FUNNELCAST_HTTP_PORT", "70000")
    monkeypatch.setenv("FUNNELCAST_BATCHSIZE", "3")
    with pytest.raises(SettingsError) as refused:
        load_settings(store="disk", colour="blue")
    text = str(refused.value)
    for part in ("BROKER is 'nowhere'", "BATCH_SIZE is 'many'", "HTTP_PORT is '70000'", "STORE is 'disk'"):
        assert f"{PREFIX}{part}" in text
    assert "FUNNELCAST_BATCHSIZE is not a setting" in text
    assert "colour is not a setting" in text
    assert "\n" not in text


@pytest.mark.parametrize("name", ["batch_wait_seconds", "session_timeout_seconds"])
@pytest.mark.parametrize("value", ["nan", "inf", "-1"])
def test_numbers_that_are_no_durations_are_refused(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=name.upper()):
        load_settings(**{name: value})


def test_variables_of_the_tooling_are_let_through(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TOOLING:
        monkeypatch.setenv(name, "1")
    assert load_settings().partitions == 4


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_settings().batch_size = 3


def test_secrets_are_masked_where_settings_are_printed() -> None:
    settings = load_settings(holdout_salt="pepper")
    assert "pepper" not in settings.describe() + repr(settings)
    assert "holdout_salt = ***" in settings.describe()
    assert settings.holdout_salt.get_secret_value() == "pepper"


def test_a_bad_secret_is_not_repeated() -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings(holdout_salt=["pepper"])
    assert "pepper" not in str(refused.value)


def test_a_state_directory_is_made_and_left_empty(tmp_path: Path) -> None:
    check_state_dir(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_a_state_directory_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(SettingsError, match=r"cannot write to the state directory .*FUNNELCAST_STATE_DIR"):
        check_state_dir(tmp_path / "file" / "state")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_state_directory_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(SettingsError, match="Permission denied"):
        check_state_dir(tmp_path)


def test_secrets_may_stand_in_files_instead_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "FUNNELCAST_SASL_PASSWORD").write_text("tulip\n")
    (tmp_path / "FUNNELCAST_HOLDOUT_SALT").write_text("pepper")
    monkeypatch.setenv("FUNNELCAST_SECRETS_DIR", str(tmp_path))
    monkeypatch.setenv("FUNNELCAST_HOLDOUT_SALT", "salt")
    settings = load_settings()
    assert settings.sasl_password.get_secret_value() == "tulip"
    assert settings.holdout_salt.get_secret_value() == "salt", "the environment wins over the files"


def test_a_missing_directory_of_secrets_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUNNELCAST_SECRETS_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(SettingsError, match=r"SECRETS_DIR is .*nowhere', expected a directory"):
        load_settings()
