"""The process among others: log lines, and systemd."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from exporter.errors import ConfigError
from exporter.process import logs
from exporter.process.logs import Formatter


def record(message: str = "hello", **extra: object) -> logging.LogRecord:
    """A line of vm.py at a known time."""
    made = logging.LogRecord(
        "exporter.collect.vm", logging.WARNING, "/x/vm.py", 90, message, (), None
    )
    made.created, made.msecs = 86400.25, 250
    vars(made).update(extra)
    return made


# Log lines.


def test_a_line_is_logfmt_as_prometheus_writes_it() -> None:
    """Time in UTC, level, source, message, then what is known more."""
    line = Formatter("logfmt").format(record("vm is down", vm="web", n=3))

    assert line == (
        'time=1970-01-02T00:00:00.250Z level=WARN source=vm.py:90 msg="vm is down" vm=web n=3'
    )


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("plain", "plain"),
        ("", '""'),
        ("two words", '"two words"'),
        ('say "x"', r'"say \"x\""'),
        ("a=b", '"a=b"'),
        ("line\nbreak", r'"line\nbreak"'),
        ("back\\slash", r'"back\\slash"'),
        ("\x1b[31m", r'"\u001b[31m"'),
        ("é", "é"),
        (None, "None"),
        (1.5, "1.5"),
    ],
)
def test_a_value_is_quoted_where_it_would_break_the_line(value: object, written: str) -> None:
    """Nothing that a VM is called can begin a line or a field of its own."""
    assert Formatter("logfmt").format(record(v=value)).endswith(f" v={written}")


def test_a_json_line_has_the_same_fields() -> None:
    """One object a line."""
    line = Formatter("json").format(record("vm is\ndown", vm="web", path=Path("/x")))

    assert "\n" not in line
    assert json.loads(line) == {
        "time": "1970-01-02T00:00:00.250Z",
        "level": "WARN",
        "source": "vm.py:90",
        "msg": "vm is\ndown",
        "vm": "web",
        "path": "/x",
    }


@pytest.mark.parametrize("kind", ["logfmt", "json"])
def test_a_traceback_stays_on_its_line(kind: str) -> None:
    """It is a field like any other."""
    made = record()
    try:
        int("broken")
    except ValueError:
        made.exc_info = sys.exc_info()
    line = Formatter(kind).format(made)

    assert "\n" not in line
    assert "ValueError: invalid literal" in line


@pytest.mark.parametrize("name", ["aiohttp.server", "asyncio"])
@pytest.mark.parametrize("level", ["info", "debug"])
def test_a_library_logs_one_line_as_we_do(name: str, level: str) -> None:
    """With the exception's name; where it came from is for whoever debugs."""
    code = (
        "import logging; from exporter.process import logs; "
        f"logs.set_up_logging({level!r}, 'json')\n"
        "try: raise ValueError('Bad status line:\\n\\n  b1')\n"
        f"except ValueError: logging.getLogger({name!r}).exception('Error from %s', 'x')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    line = json.loads(done.stderr)

    assert (line["level"], line["msg"]) == ("ERROR", "Error from x")
    assert line.get("err") == ("ValueError: Bad status line: b1" if level == "info" else None)
    assert ("trace" in line) == (level == "debug")


@pytest.mark.parametrize(
    ("level", "written"),
    [
        ("debug", ["d", "i", "w", "e"]),
        ("info", ["i", "w", "e"]),
        ("warn", ["w", "e"]),
        ("error", ["e"]),
    ],
)
def test_lines_below_the_level_are_not_written(
    root_logger: logging.Logger, capsys: pytest.CaptureFixture[str], level: str, written: list[str]
) -> None:
    """To stderr, and nothing to stdout: `once` prints metrics there."""
    logs.set_up_logging(level, "json")
    for name in ("debug", "info", "warning", "error"):
        getattr(logging.getLogger("exporter.test"), name)(name[0])
    captured = capsys.readouterr()

    assert [json.loads(line)["msg"] for line in captured.err.splitlines()] == written
    assert captured.out == ""


# What systemd hears.


@pytest.fixture
def manager(sockets: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Systemd's end of NOTIFY_SOCKET."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(sockets / "notify"))
        sock.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(sockets / "notify"))
        yield sock


def test_states_are_told_in_one_message(manager: socket.socket) -> None:
    """As sd_notify does."""
    logs.notify("READY=1", "STATUS=version 1")

    assert manager.recv(1000) == b"READY=1\nSTATUS=version 1"


def test_a_reload_says_when_it_began(manager: socket.socket) -> None:
    """Type=notify-reload wants it."""
    logs.notify_reloading()
    states = dict(line.split("=") for line in manager.recv(1000).decode().splitlines())

    assert states["RELOADING"] == "1"
    assert int(states["MONOTONIC_USEC"]) > 0


def test_an_abstract_socket_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its address begins with @."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0qbe-test-{os.getpid()}")
        sock.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@qbe-test-{os.getpid()}")
        logs.notify("READY=1")

        assert sock.recv(1000) == b"READY=1"


def test_without_systemd_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell has no NOTIFY_SOCKET."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.setattr(socket, "socket", lambda *_: pytest.fail("a socket was opened"))

    logs.notify("READY=1")


def test_a_systemd_that_does_not_listen_is_a_warning(
    sockets: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It must not end the process."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(sockets / "gone"))
    logs.notify("READY=1")

    assert [record.message for record in caplog.records] == ["systemd not notified"]


@pytest.mark.parametrize(
    ("usec", "pid", "seconds"),
    [
        (None, None, None),
        ("", None, None),
        ("often", None, None),
        ("0", None, None),
        ("30000000", None, 15.0),
        ("30000000", "self", 15.0),
        ("30000000", "1", None),
    ],
)
def test_the_watchdog_is_fed_twice_as_often_as_systemd_wants(
    monkeypatch: pytest.MonkeyPatch, usec: str | None, pid: str | None, seconds: float | None
) -> None:
    """If it is this process that is watched."""
    for name, value in (("WATCHDOG_USEC", usec), ("WATCHDOG_PID", pid)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, str(os.getpid()) if value == "self" else value)

    assert logs.watchdog_seconds() == seconds


# What systemd hands over.


@pytest.mark.parametrize(
    ("count", "pid"), [(None, None), ("1", "1"), ("0", "self"), ("x", "self"), ("", "self")]
)
def test_sockets_that_were_not_handed_over_are_an_error(
    monkeypatch: pytest.MonkeyPatch, count: str | None, pid: str | None
) -> None:
    """Or were handed to another process."""
    for name, value in (("LISTEN_FDS", count), ("LISTEN_PID", pid)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, str(os.getpid()) if value == "self" else value)

    with pytest.raises(ConfigError, match="^--web.systemd-socket: "):
        logs.systemd_sockets()


def test_sockets_are_taken_over_from_descriptor_3_on() -> None:
    """In the process that LISTEN_PID names, and not in its children."""
    script = (
        "import os, socket\n"
        "from exporter.process import logs\n"
        "pair = [socket.create_server(('127.0.0.1', 0)) for _ in range(2)]\n"
        "for number, sock in enumerate(pair, 3):\n"
        "    os.dup2(sock.fileno(), number + 7)\n"
        "logs._FIRST_SOCKET = 10\n"
        "os.environ |= {'LISTEN_FDS': '2', 'LISTEN_PID': str(os.getpid())}\n"
        "taken = logs.systemd_sockets()\n"
        "print([s.getsockname() for s in taken] == [s.getsockname() for s in pair])\n"
        "print('LISTEN_FDS' in os.environ, 'LISTEN_PID' in os.environ)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )

    assert done.stdout == "True\nFalse False\n"


def test_as_many_files_may_be_open_as_the_hard_limit_allows() -> None:
    """A session for each of a thousand VMs is more than the usual 1024 leave."""
    script = (
        "import resource as r; from exporter.process import logs;"
        "hard = r.getrlimit(r.RLIMIT_NOFILE)[1]; r.setrlimit(r.RLIMIT_NOFILE, (64, hard));"
        "logs.raise_file_limit(); assert r.getrlimit(r.RLIMIT_NOFILE) == (hard, hard)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
