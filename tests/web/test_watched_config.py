"""The web config file as it is now: when it is read, and what it may not change."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from exporter.errors import ConfigError
from exporter.web import config, watched_config
from exporter.web.watched_config import WatchedWebConfig
from tests.pki import Pki, hashed

CERT = "tls_server_config:\n  cert_file: server.pem\n  key_file: server.key\n"
CLIENTS = CERT + "  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: ca.pem\n"
SANS = "  client_allowed_sans: [a.example]\n"
USERS = f"basic_auth_users: {{a: {hashed('a')}}}\n"


@pytest.fixture(scope="module")
def pki() -> Pki:
    """The authority of these tests."""
    return Pki()


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    """Returns what was logged, with the error."""

    def lines() -> list[str]:
        return [
            f"{record.message}: {record.err}" if hasattr(record, "err") else record.message
            for record in caplog.records
        ]

    with caplog.at_level(logging.INFO):
        yield lines


@pytest.mark.parametrize(
    ("before", "after", "said_of_it"),
    [
        (CERT, "", "TLS is turned off by a restart only"),
        (CERT + USERS, USERS, "TLS is turned off by a restart only"),
        (USERS, CERT + USERS, "TLS is turned on by a restart only"),
        (USERS, "", "users are turned off by a restart only"),
        (CLIENTS, CERT, "client certificates are turned off by a restart only"),
        (
            CLIENTS,
            CLIENTS.replace("RequireAndVerifyClientCert", "VerifyClientCertIfGiven"),
            "client certificates are turned off by a restart only",
        ),
        (CLIENTS + SANS, CLIENTS, "client_allowed_sans is turned off by a restart only"),
    ],
    ids=["tls", "tls-beside-users", "tls-new", "users", "clients", "clients-if-given", "sans"],
)
def test_what_protects_is_turned_off_by_a_restart_only(
    tmp_path: Path,
    pki: Pki,
    said: Callable[[], list[str]],
    before: str,
    after: str,
    said_of_it: str,
) -> None:
    """The beginning of a file that is being written must not open the door; TLS cannot change."""
    pki.write(tmp_path)
    path = tmp_path / "web.yml"
    path.write_text(before)
    known = WatchedWebConfig(str(path))
    config = known.config
    path.write_text(after)

    assert known.config == config
    assert said() == [f"web configuration not reloaded: {path}: {said_of_it}"]


@pytest.mark.parametrize(
    ("before", "after"),
    [("", USERS), (CERT, CLIENTS), (CLIENTS, CLIENTS + SANS)],
    ids=["users", "clients", "sans"],
)
def test_what_protects_is_turned_on_at_once(
    tmp_path: Path, pki: Pki, before: str, after: str
) -> None:
    """But for TLS itself."""
    pki.write(tmp_path)
    path = tmp_path / "web.yml"
    path.write_text(before)
    known = WatchedWebConfig(str(path))
    path.write_text(after)

    assert known.config == WatchedWebConfig(str(path)).config


class Looks:
    """Counts how often the file is read, with files that are as old as they are."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reads = 0
        self.path = path

        def counted(name: str) -> object:
            self.reads += 1
            return config.read(name)

        monkeypatch.setattr(watched_config, "read", counted)
        monkeypatch.setattr(watched_config, "_TICK_NS", 0)
        self.live = WatchedWebConfig(str(path))

    def look(self) -> int:
        """Look a few times, and return how often the file was read for it."""
        before = self.reads
        for _ in range(5):
            assert self.live.config is not None
        return self.reads - before


def test_the_file_is_read_only_when_it_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it is only looked at, good or broken."""
    path = tmp_path / "web.yml"
    path.write_text("")
    looks = Looks(path, monkeypatch)
    assert (looks.reads, looks.look()) == (1, 0)
    path.write_text("rate_limit: {interval: 1s, burst: 1}\n")
    assert looks.look() == 1
    path.write_text("broken")
    assert looks.look() == 1
    path.unlink()
    assert looks.look() == 1
    path.write_text("")
    assert looks.look() == 1


def test_a_file_whose_times_were_put_back_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a backup is copied over it; that it may be read now is a change too."""
    path = tmp_path / "web.yml"
    path.write_text("rate_limit: {interval: 1s, burst: 1}\n")
    looks = Looks(path, monkeypatch)
    found = path.stat()
    path.write_text("rate_limit: {interval: 1s, burst: 2}\n")
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert looks.look() == 1
    path.chmod(0o600)
    assert looks.look() == 1


def test_a_file_that_was_just_written_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two writes in one tick of the kernel's clock leave one time."""
    path = tmp_path / "web.yml"
    path.write_text("")
    monkeypatch.setattr(watched_config, "_TICK_NS", 10**18)
    known = WatchedWebConfig(str(path))
    found = path.stat()
    path.write_text("rate_limit: {interval: 1s, burst: 7}\n")
    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", lambda _: found)
        config = known.config

    assert config.rate_limit is not None
    assert config.rate_limit.burst == 7


def test_whoever_asks_is_told_whether_the_file_is_good(tmp_path: Path) -> None:
    """For the metric of the last reload."""
    path = tmp_path / "web.yml"
    path.write_text("")
    known = WatchedWebConfig(str(path))
    told: list[bool] = []
    known.told = told.append
    for text in ("broken", ""):
        path.write_text(text)
        assert known.config is not None

    assert set(told[: told.index(True)]) == {False}
    assert told[-1] is True


def test_whoever_asks_is_told_that_the_file_changed(tmp_path: Path) -> None:
    """Not of one that is broken, nor of a reload that they asked for themselves."""
    path = tmp_path / "web.yml"
    path.write_text(USERS)
    known = WatchedWebConfig(str(path))
    users: list[list[str]] = []
    known.changed = lambda: users.append(list(known.config.users))
    for text in ("broken", USERS.replace("a:", "b:", 1)):
        path.write_text(text)
        assert known.config is not None
    path.write_text(USERS)
    known.reload()

    assert users == [["b"]]


def test_a_reload_that_somebody_asks_for_says_what_is_wrong(
    tmp_path: Path, said: Callable[[], list[str]]
) -> None:
    """To who asked, who logs it; the next look says nothing a second time."""
    path = tmp_path / "web.yml"
    path.write_text(USERS)
    known = WatchedWebConfig(str(path))
    path.write_text("broken")
    with pytest.raises(ConfigError, match=r"/web.yml: Expected `object`, got `str`$"):
        known.reload()
    assert list(known.config.users) == ["a"]
    path.write_text(USERS.replace("a:", "b:", 1))
    known.reload()

    assert list(known.config.users) == ["b"]
    assert not said()


def test_a_socket_without_tls_needs_no_context(tmp_path: Path, pki: Pki) -> None:
    """And one with it has the same for its life."""
    pki.write(tmp_path)
    path = tmp_path / "web.yml"
    path.write_text(USERS)
    assert WatchedWebConfig(str(path)).context is None
    path.write_text(CERT)
    assert WatchedWebConfig(str(path)).context is not None
