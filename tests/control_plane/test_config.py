"""Settings: what is read from where, and what stops a start."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from control_plane.config import ControlSettings, explained


def test_lists_in_the_environment_are_separated_as_paths_and_names_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LORAPLANE_ADAPTER_ROOTS", "/a:/b")
    monkeypatch.setenv("LORAPLANE_RESOLVERS", "filesystem")
    settings = ControlSettings()
    assert settings.adapter_roots == (Path("/a"), Path("/b"))
    assert settings.resolvers == ("filesystem",)


def test_no_roots_are_no_roots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAPLANE_ADAPTER_ROOTS", "")
    assert ControlSettings().adapter_roots == ()


@pytest.mark.parametrize("listen", ["0.0.0.0:8470", "[::]:8470", "example.org:8470", "10.0.0.1:8470"])
def test_listening_beyond_this_machine_without_tls_is_refused(listen: str) -> None:
    with pytest.raises(ValidationError, match="allow_insecure"):
        ControlSettings(listen=listen)
    assert ControlSettings(listen=listen, allow_insecure=True).listen == listen


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "[::1]:8470", "localhost:8470", "unix:/tmp/x.sock"])
def test_listening_on_this_machine_needs_no_tls(listen: str) -> None:
    assert ControlSettings(listen=listen).listen == listen


def test_a_certificate_without_its_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="go together"):
        ControlSettings(tls_cert_file=tmp_path / "cert.pem")


def test_an_unknown_resolver_is_refused_by_name() -> None:
    with pytest.raises(ValidationError, match="resolvers"):
        ControlSettings(resolvers=("gopher",))  # type: ignore[arg-type]


def test_key_files_are_in_the_state_directory_unless_named(tmp_path: Path) -> None:
    settings = ControlSettings(state_dir=tmp_path, worker_key_file=tmp_path / "elsewhere")
    assert settings.admin_key_path == tmp_path / "admin.key"
    assert settings.worker_key_path == tmp_path / "elsewhere"


def test_a_key_of_grants_that_workers_could_not_learn_in_time_is_refused() -> None:
    with pytest.raises(ValidationError, match="grant_key_life_s: 5 must be at least twice"):
        ControlSettings(grant_key_life_s=5, worker_lease_ttl_s=3)


@pytest.mark.parametrize(
    "url",
    [
        "redis://:s3cret@10.0.0.1:6379/0",
        "redis://u:s3cret@redis.example.org",
        "redis:///0?host=10.0.0.1&password=s3cret",
    ],
)
def test_redis_beyond_this_machine_in_plain_text_is_refused_and_the_password_not_shown(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("LORAPLANE_REDIS_URL", url)
    with pytest.raises(ValidationError) as caught:
        ControlSettings()
    shown = explained(caught.value)
    assert shown.startswith("redis_url: 'redis://")
    assert "rediss://" in shown
    assert "allow_insecure" in shown
    assert "s3cret" not in shown
    assert "s3cret" not in repr(ControlSettings(allow_insecure=True))


@pytest.mark.parametrize(
    "url",
    [
        *("redis://", "redis://:pw@localhost:6379/0", "redis://127.0.0.1", "redis://[::1]:6379"),
        *("unix:///run/valkey.sock", "rediss://redis.example.org:6380/0"),
    ],
)
def test_redis_on_this_machine_or_by_tls_needs_no_word_of_consent(url: str) -> None:
    assert ControlSettings(redis_url=url).redis_url == url


@pytest.mark.parametrize("url", ["http://redis", "localhost:6379", "redis://:s3/cret@localhost"])
def test_what_is_no_url_of_a_redis_is_refused_without_showing_its_password(url: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ControlSettings(redis_url=url)
    assert "must be a redis://, rediss:// or unix:// URL" in explained(caught.value)
    assert "cret" not in explained(caught.value)


def test_a_refusal_shows_field_value_and_rule_and_no_other_setting() -> None:
    with pytest.raises(ValidationError) as caught:
        ControlSettings(redis_url="rediss://:s3cret@h", num_holders=-1, listen="0.0.0.0:1")
    assert explained(caught.value) == "num_holders: -1: Input should be greater than or equal to 0"
