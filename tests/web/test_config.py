"""The web config file: what it may say, and each mistake that can be made in it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from exporter.errors import ConfigError
from exporter.web.config import RateLimit, Tls, WebConfig, read
from exporter.web.watched_config import WatchedWebConfig
from tests.pki import Pki

DATA = Path(__file__).parent.parent / "data/web_config"
WRONG = sorted((DATA / "wrong").iterdir())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with certificates, good ones and others."""
    made = tmp_path_factory.mktemp("web")
    Pki().write(made)
    return made


def written(tmp_path: Path, text: str) -> str:
    """Write a file and return its path."""
    path = tmp_path / "web.yml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("path", WRONG, ids=lambda path: path.stem)
def test_each_mistake_has_one_message_that_names_the_place(path: Path, folder: Path) -> None:
    """The file's first line says it: one file for each mistake."""
    expected = path.read_text().partition("\n")[0].removeprefix("# FILE")
    copy = shutil.copy(path, folder / "web.yml")
    with pytest.raises(ConfigError) as caught:
        WatchedWebConfig(str(copy))

    assert str(caught.value) == f"{copy}{expected.replace('FOLDER', str(folder))}"
    assert len(expected) > 10


def test_no_message_shows_a_secret() -> None:
    """What stands in the place of a hash may be the password."""
    for path in WRONG:
        said, _, text = path.read_text().partition("\n")
        for secret in re.findall(r"^  a: (.{6,})$", text, re.MULTILINE):
            assert secret not in said


def test_a_file_can_say_everything() -> None:
    """Every key of exporter-toolkit's documentation that can be honoured."""
    config = read(str(DATA / "good.yml"))

    assert config == WebConfig(
        tls=Tls(
            cert_file=f"{DATA}/server.pem",
            key_file="/etc/qemu-block-exporter/server.key",
            client_ca_file=f"{DATA}/../ca.pem",
            client_auth_type="RequireAndVerifyClientCert",
            client_allowed_sans=("prometheus.example", "10.0.0.1"),
            min_version="TLS12",
            max_version="TLS12",
            cipher_suites=(
                "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
                "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
            ),
            prefer_server_cipher_suites=False,
            curve_preferences=("X25519",),
        ),
        headers={
            "Content-Security-Policy": "default-src 'self'",
            "Strict-Transport-Security": "max-age=31536000",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "deny",
            "X-XSS-Protection": "1; mode=block",
        },
        users={
            "prometheus": "$2y$10$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7zG",
            "operator": "$2b$12$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7zG",
        },
        rate_limit=RateLimit(interval_seconds=0.1, burst=20),
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing\n",
        "{}",
        "tls_server_config: {}\nhttp_server_config: {http2: true}\nbasic_auth_users: {}\n",
        "http_server_config: {headers: {X-Frame-Options: ''}}\n",
        "rate_limit: {interval: 0, burst: 0}\n",
        "rate_limit: {interval: 0s, burst: 5}\n",
    ],
)
def test_a_file_may_say_nothing(tmp_path: Path, text: str) -> None:
    """A header without a value is none, and an interval of 0 turns the limit off."""
    assert read(written(tmp_path, text)) == WebConfig()


@pytest.mark.parametrize(
    ("interval", "seconds"),
    [
        ("1s", 1.0),
        ("500ms", 0.5),
        ("1m30s", 90.0),
        ("1.5h", 5400.0),
        (".5s", 0.5),
        ("2us", 2e-6),
        ("2µs", 2e-6),
        ("2μs", 2e-6),
        ("7ns", 7e-9),
    ],
)
def test_an_interval_is_a_duration_as_go_writes_it(
    tmp_path: Path, interval: str, seconds: float
) -> None:
    """In all its units."""
    path = written(tmp_path, f"rate_limit: {{interval: {interval}, burst: 3}}\n")

    limit = read(path).rate_limit
    assert limit is not None
    assert limit.interval_seconds == pytest.approx(seconds)
    assert limit.burst == 3


def test_a_file_that_is_gone_is_refused(tmp_path: Path) -> None:
    """As the other configuration is."""
    with pytest.raises(ConfigError, match=r"/gone.yml: No such file or directory$"):
        read(f"{tmp_path}/gone.yml")
