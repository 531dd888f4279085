"""The HTTP client configuration file: strict, and clear about each mistake."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
import trustme

from exporter.ctl.credentials import load
from exporter.errors import ConfigError
from tests.messages import tells


def written(folder: Path, text: str) -> str:
    """Return the path of a file with `text`."""
    (folder / "http.yml").write_text(text)
    return str(folder / "http.yml")


def test_without_a_file_servers_have_to_be_known_and_nobody_asks() -> None:
    """The system's authorities count."""
    made = load(None)

    assert (made.username, made.tls.verify_mode) == (None, ssl.CERT_REQUIRED)


def test_an_empty_file_says_nothing(tmp_path: Path) -> None:
    """As none does."""
    assert load(written(tmp_path, "")).username is None


def test_a_password_may_stand_in_a_file_beside(tmp_path: Path) -> None:
    """Without the end of its line."""
    (tmp_path / "secret").write_text("s3cret\n")
    made = load(written(tmp_path, "basic_auth: {username: me, password_file: secret}"))

    assert (made.username, made.password) == ("me", "s3cret")


def test_a_password_may_stand_in_the_file(tmp_path: Path) -> None:
    """As may none."""
    assert load(written(tmp_path, "basic_auth: {username: me, password: p}")).password == "p"
    assert load(written(tmp_path, "basic_auth: {username: me}")).password == ""


def test_tls_is_what_the_file_says(tmp_path: Path) -> None:
    """An authority, a certificate of our own, and another name."""
    authority = trustme.CA()
    mine = authority.issue_cert("me")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    mine.cert_chain_pems[0].write_to_path(tmp_path / "me.pem")
    mine.private_key_pem.write_to_path(tmp_path / "me.key")
    made = load(
        written(
            tmp_path,
            "tls_config: {ca_file: ca.pem, cert_file: me.pem, key_file: me.key, server_name: x}",
        )
    )

    assert made.server_name == "x"
    assert made.tls.cert_store_stats()["x509_ca"] == 1


def test_a_server_need_not_be_known_where_that_is_said(tmp_path: Path) -> None:
    """Aloud."""
    made = load(written(tmp_path, "tls_config: {insecure_skip_verify: true}"))

    assert made.tls.verify_mode == ssl.CERT_NONE


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("basic_auth: {user: me}", "Object contains unknown field `user` - at `$.basic_auth`"),
        (
            "basic_auth: {password: x}",
            "Object missing required field `username` - at `$.basic_auth`",
        ),
        ("oauth2: {}", "Object contains unknown field `oauth2`"),
        ("basic_auth: {username: 'a:b'}", "basic_auth.username: ... 'a:b'"),
        (
            "basic_auth: {username: a, password: b, password_file: c}",
            "basic_auth: ... password_file...",
        ),
        (
            "basic_auth: {username: a, password_file: /gone}",
            "basic_auth.password_file: /gone: No such file or directory",
        ),
        ("tls_config: {key_file: x}", "tls_config: key_file ... cert_file"),
        ("tls_config: {cert_file: x}", "tls_config: cert_file ... key_file"),
        ("tls_config: {ca_file: /gone}", "tls_config.ca_file: /gone: No such file or directory"),
        ("tls_config: {ca_file: /dev/null}", "tls_config.ca_file: /dev/null: ..."),
        (
            "tls_config: {cert_file: /gone, key_file: /gone}",
            "tls_config: /gone with /gone: No such file or directory",
        ),
        ('basic_auth: {username: a, password_file: "\\0"}', "basic_auth.password_file: ..."),
        ('tls_config: {ca_file: "\\0"}', "tls_config.ca_file: ..."),
        ('tls_config: {cert_file: "\\0", key_file: b}', "tls_config: ..."),
        ("basic_auth: {}\nbasic_auth: {}", "... 'basic_auth'"),
    ],
)
def test_a_mistake_is_told_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    """And with the file."""
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load(path)

    assert tells(str(caught.value), f"{path}:...{said}"), caught.value


def test_a_password_that_is_no_text_is_a_mistake(tmp_path: Path) -> None:
    """A key was meant, maybe."""
    (tmp_path / "secret").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"password_file: .*secret"):
        load(written(tmp_path, "basic_auth: {username: me, password_file: secret}"))
