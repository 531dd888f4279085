"""What the tests need of a machine is said in one line where it is missing, before anything runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import machine
from tests.packages import ROOT, is_ignored, run, tracked


def said(*before: str) -> tuple[int, str]:
    """Return how the check ends, and what it says, when it is started by another command."""
    command = [*before, sys.executable, "-m", "tests.machine"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert not done.stdout
    return done.returncode, done.stderr


def in_mounts(script: str) -> tuple[str, ...]:
    """Return what starts a command with mounts of its own that a script changes."""
    return ("unshare", "--mount", "sh", "-ec", f'{script}; exec "$@"', "sh")


def test_a_machine_that_has_all_is_told_nothing() -> None:
    """This one, for the rest of the tests."""
    assert said() == (0, "")


def test_nobody_but_root_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """And is asked nothing else."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    assert machine.lacks() == machine.lacks_to_boot() == (
        "the tests need root: some mount file systems, and some boot a systemd"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("before", "sentence"),
    [
        (("setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"),
         "the tests need a machine on which root may have mounts of its own: unshare: unshare failed: Operation not permitted"),
        (in_mounts("mount -t tmpfs tmpfs /dev"),
         "the tests need /dev/fuse: some look through file systems that they can stop"),
        (in_mounts("mount -t tmpfs tmpfs /sys/fs/cgroup"),
         "the tests that boot a systemd need control groups at /sys/fs/cgroup, and there are none"),
        (in_mounts("mount --rbind /sys/fs/cgroup /sys/fs/cgroup; mount -o remount,bind,ro /sys/fs/cgroup; "
                   "for each in systemd unified; do [ ! -d /sys/fs/cgroup/$each ] || "
                   "mount -o remount,bind,ro /sys/fs/cgroup/$each; done"),
         "the tests that boot a systemd need to make control groups in /sys/fs/cgroup"),
    ],
    ids=["mounts", "fuse", "no groups", "groups that are read-only"],
)  # fmt: skip
def test_what_is_missing_is_said_in_one_line(before: tuple[str, ...], sentence: str) -> None:
    """What it is for, and what the system said."""
    code, text = said(*before)

    assert code == 1
    assert text.startswith(sentence)
    assert text.count("\n") == 1


def test_a_chroot_is_said_to_be_one(tmp_path: Path) -> None:
    """There are no user namespaces in it, and so the units' sandboxes do not start."""
    code, text = said(
        *in_mounts(f'mount --rbind / {tmp_path}; set -- chroot {tmp_path} env -C {ROOT} "$@"')
    )

    assert (code, text.count("\n")) == (1, 1)
    assert text.startswith(
        "the tests that boot a systemd need user namespaces, which a chroot does not have"
    )


def test_a_tree_without_git_is_one_that_git_would_take_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An sdist has no .git: what is in it is what was tracked."""
    for name in tracked():
        if (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
    before = tracked()
    ignored = ROOT / "deploy/docker/secrets/password"
    assert is_ignored(ignored)
    monkeypatch.setattr("tests.packages.ROOT", tmp_path)

    assert tracked() == {name for name in before if (tmp_path / name).exists()}
    assert is_ignored(tmp_path / "deploy/docker/secrets/password")
    assert not is_ignored(tmp_path / "README.md")
    assert not run(["find", tmp_path, "-name", "*.git"])
