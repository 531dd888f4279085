"""What is relied on of qemu.qmp beyond its public surface holds, in the pinned and the newest release."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from qemu.qmp import QMPClient

from exporter.qmp import library
from exporter.qmp.library import RELIED_ON, LineClient

ROOT = Path(__file__).parent.parent.parent
PINNED = re.search(r"^qemu\.qmp==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
#: What only a session shows: greeting, negotiation, lines past the library, all kinds of ends.
SESSIONS = "tests/qmp/test_session.py"


def newest(folder: Path) -> str:
    """Install the newest release into a folder; return its version, empty without an index."""
    environment = {name: value for name, value in os.environ.items() if name != "PIP_CONSTRAINT"}
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade"]
    found = subprocess.run(
        [*command, "--target", str(folder), "qemu.qmp"],
        env=environment, capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    [about] = folder.glob("qemu*.dist-info") if found.returncode == 0 else [Path("-")]
    return about.name.removesuffix(".dist-info").partition("-")[2]


def test_all_tests_run_with_the_release_that_is_pinned() -> None:
    """So that the tests of sessions are about it."""
    assert PINNED is not None
    assert version("qemu.qmp") == PINNED[1]


@pytest.mark.parametrize("name", RELIED_ON)
def test_what_is_not_promised_is_there(name: str) -> None:
    """The methods are those of the library, and the streams are None without a connection."""
    if name in ("_reader", "_writer"):
        assert vars(QMPClient())[name] is None
    else:
        assert callable(getattr(QMPClient, name))


def test_nothing_else_that_is_not_promised_is_used() -> None:
    """Each private name of the library in its module is named in `RELIED_ON`, or is a documented hook."""
    used = set(re.findall(r"\b_[a-z]\w*", Path(library.__file__).read_text()))
    theirs = set(dir(QMPClient())) - set(dir(object))

    assert used & theirs == {*RELIED_ON, "_cb_inbound", "_cb_outbound"}
    assert issubclass(LineClient, QMPClient)


def test_the_newest_release_passes_the_tests_of_sessions(tmp_path: Path) -> None:
    """A release that breaks what is relied on is seen before it is pinned.

    Where the newest is the pinned one, or no package index can be reached, these tests have run.
    """
    found = newest(tmp_path)
    if found in ("", version("qemu.qmp")):
        return
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", SESSIONS],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip

    assert ran.returncode == 0, f"qemu.qmp {found}:\n{ran.stdout[-4000:]}"
