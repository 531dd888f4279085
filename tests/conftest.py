"""What all tests share."""

from __future__ import annotations

import ctypes
import logging
import os
import re
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.fakeapi import FakeApi, fake_api
from tests.fakeqmp import FakeQmp
from tests.packages import Packages, build
from tests.reach import Reach, run
from tests.shell import Shell

# A machine may be busy: no example fails for being slow.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

_CLONE_NEWNS = 0x20000


def pytest_configure(config: pytest.Config) -> None:
    """Let each worker have mounts of its own: one that hangs on purpose is no concern of others."""
    if "PYTEST_XDIST_WORKER" in os.environ and os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.unshare(_CLONE_NEWNS) == 0, os.strerror(ctypes.get_errno())
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)


@pytest.fixture
def sockets() -> Iterator[Path]:
    """A folder whose path is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="qbe-") as folder:
        yield Path(folder)


@pytest.fixture
async def fake(sockets: Path) -> AsyncIterator[FakeQmp]:
    """A QEMU 7.2 with a disk on two layers, on which a commit starts when it is asked for."""
    async with FakeQmp(str(sockets / "vm.sock")) as server:
        run(server, 7, 2)
        yield server


@pytest.fixture
async def reach(sockets: Path, tmp_path: Path) -> AsyncIterator[Reach]:
    """The fleet of the VMs in the folder of sockets, with an account."""
    made = Reach(sockets, tmp_path / "state")
    yield made
    await made.close()


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    """The program's logger, put back afterwards."""
    logger = logging.getLogger("exporter")
    before = logger.handlers[:], logger.propagate, logger.level
    yield logger
    logger.handlers[:], logger.propagate = before[0], before[1]
    logger.setLevel(before[2])


@pytest.fixture(autouse=True)
def fresh_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every look at the sockets of this host see what is there now: a test waits for nothing."""
    monkeypatch.setattr("exporter.qmp.connections.FRESH_SECONDS", 0.0)


@pytest.fixture
async def api() -> AsyncIterator[FakeApi]:
    """The HTTP API of an exporter, scripted."""
    async with fake_api() as running:
        yield running


@pytest.fixture
def shell(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> Shell:
    """The operators' commands against `api`."""
    return Shell(api, capsys)


def samples(exposition: str) -> dict[str, str]:
    """Return each sample of an exposition: name with labels -> value."""
    lines = [line for line in exposition.splitlines() if line and not line.startswith("#")]
    parsed = dict(line.rsplit(" ", 1) for line in lines)
    assert len(parsed) == len(lines), "a series stands twice"
    return parsed


def series(exposition: str, name: str, **labels: str) -> dict[str, str]:
    """Return the samples of one family that have all the labels given."""
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    return {
        sample: value
        for sample, value in samples(exposition).items()
        if re.split(r"[{ ]", sample, maxsplit=1)[0] == name
        and all(label in sample for label in wanted)
    }


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the flag that writes the golden expositions anew."""
    parser.addoption("--update-golden", action="store_true", help="write tests/golden anew")


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    """Wheel, sdist and SBOM, and the Debian package for whoever asks."""
    folder = tmp_path_factory.mktemp("dist")
    build("deploy/dist", folder)
    return Packages(folder)
