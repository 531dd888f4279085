"""The workflow from the shell on real QEMU: what an operator types, sees and gets back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.api import ALL, Admin, admin
from tests.e2e.lab import (
    MIB,
    PATIENCE_SECONDS,
    ROOT,
    Disk,
    Lab,
    Qemu,
    blockdev,
    drive,
    plug,
    wait_until,
)
from tests.e2e.witness import Content, audited, files, raw, state

SIZE = 16 * MIB
DISKS = {"drive": "disk0", "blockdev": "virtio-disk1"}
by_both = pytest.mark.parametrize("kind", DISKS)
JOB = "qbe-merge"
#: Polls follow each other fast.
FAST = "--interval=0.05"


class Shell:
    """An operator at a shell, with a file of the user and password."""

    def __init__(self, lab: Lab, user: Admin) -> None:
        credentials = {"basic_auth": {"username": user.user, "password": user.user * 2}}
        self._config = lab.folder / "http.json"
        self._config.write_text(json.dumps(credentials))
        self._url = user.exporter.url

    def command(self, *words: str) -> list[str]:
        reach = [f"--url={self._url}", f"--http.config.file={self._config}"]
        return [sys.executable, "-m", "exporter", *words, *reach]

    def run(self, *words: str, code: int = 0) -> str:
        """Run a command that ends with this exit code, and return all that it said."""
        done = subprocess.run(
            self.command(*words),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
            cwd=ROOT,
            env={**os.environ, "COLUMNS": "300"},
        )
        assert done.returncode == code, done.stdout
        return done.stdout

    def json(self, *words: str, code: int = 0) -> list[Any]:
        """Run a command with --json, and return the documents on its standard output."""
        done = subprocess.run(
            self.command(*words, "--json"),
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
            cwd=ROOT,
        )
        assert done.returncode == code, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def vm(lab: Lab) -> Qemu:
    """A VM with an empty disk of each kind."""
    return lab.qemu(
        "vm",
        *drive("disk0", lab.image("disk0", SIZE)),
        *plug("virtio-disk0", "disk0"),
        *blockdev("virtio-disk1", lab.image("virtio-disk1", SIZE)),
        machine="pc",
    )


@pytest.fixture
def disk(vm: Qemu, kind: str) -> Disk:
    """The disk that a test is about."""
    return Disk(vm, DISKS[kind])


@pytest.fixture
def shell(lab: Lab, vm: Qemu) -> Shell:
    """An operator who may do everything."""
    return Shell(lab, admin(lab))


def overlaid(shell: Shell, lab: Lab, disk: Disk) -> Path:
    """Put a layer with a MiB of data on a disk."""
    overlay = lab.folder / "overlay.qcow2"
    shell.run("snapshot", "vm", disk.device, str(overlay))
    disk.write(0, MIB)
    return overlay


@by_both
def test_the_whole_workflow_from_the_shell_leaves_every_byte_in_the_base(
    lab: Lab, vm: Qemu, disk: Disk, shell: Shell
) -> None:
    """Snapshot, write, commit, watch, complete when ready; then the chain is its base again."""
    content = Content(disk, lab.folder, bytes(SIZE))
    overlay = lab.folder / "overlay.qcow2"
    content.write(MIB, 3 * MIB)
    assert "prelaunch" in shell.run("vms")
    said = shell.run("snapshot", "vm", disk.device, str(overlay))
    assert f"snapshot of {disk.device} of vm" in said
    content.write(2 * MIB + 512, MIB)
    content.write(9 * MIB, 2 * MIB)
    chain = shell.run("chain", "vm", disk.device)
    assert chain.index(str(overlay)) < chain.index(f"{disk.device}.qcow2")

    before = state(vm)
    tried = shell.run("commit", "vm", disk.device, f"--job-id={JOB}", "--dry-run")
    assert "block-commit" in tried
    assert state(vm) == before

    shell.run("commit", "vm", disk.device, f"--job-id={JOB}", "--speed=1")
    content.write(12 * MIB, MIB)
    jobs = shell.run("jobs", "vm")
    assert JOB in jobs
    assert "running" in jobs
    assert "not ready" in shell.run("complete", "vm", JOB, code=1)
    shell.run("speed", "vm", JOB, "0")
    ready = shell.run("commit", "vm", disk.device, f"--job-id={JOB}", "--speed=1", "--wait", FAST)
    assert "ready" in ready
    content.write(0, 4096)

    said = shell.run("complete", "vm", JOB, "--wait", FAST)
    assert "completed" in said
    assert str(overlay) not in shell.run("chain", "vm", disk.device)
    wait_until(lambda: not vm.run("query-jobs"), "the job is dismissed")

    vm.quit()
    assert raw(lab.folder / f"{disk.device}.qcow2") == content.expected


@by_both
def test_one_command_commits_and_completes(lab: Lab, vm: Qemu, disk: Disk, shell: Shell) -> None:
    """With JSON lines for a script: the last one tells how it ended."""
    overlaid(shell, lab, disk)

    lines = shell.json("commit", "vm", disk.device, "--complete-when-ready", FAST)

    last = lines[-1]
    assert (last["job_type"], last["device"], last["outcome"]) == (
        "commit",
        disk.device,
        "completed",
    )
    [found] = shell.json("chain", "vm", disk.device)
    devices = {each["device"]: each for each in found["devices"]}
    assert [layer["layer"] for layer in devices[disk.device]["layers"]] == [0]


@pytest.mark.parametrize("kind", ["drive"])
def test_ctrl_c_leaves_the_job_alone_and_says_so(
    lab: Lab, vm: Qemu, disk: Disk, shell: Shell
) -> None:
    """The job goes on, and what is printed is the command that ends it."""
    overlaid(shell, lab, disk)
    words = ("commit", "vm", disk.device, f"--job-id={JOB}", "--speed=1", "--wait", FAST)
    waiting = subprocess.Popen(
        shell.command(*words), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
    )
    wait_until(lambda: vm.job(JOB), "the job has begun")
    assert waiting.stdout is not None
    while "running" not in waiting.stdout.readline():
        assert waiting.poll() is None
    waiting.send_signal(signal.SIGINT)
    said, _ = waiting.communicate(timeout=PATIENCE_SECONDS)

    assert waiting.returncode == 130
    assert "goes on" in said
    assert f"complete {JOB}" in said or f"vm {JOB}" in said
    assert vm.job(JOB)


def test_a_layer_of_blockdev_that_was_merged_is_let_go_of_before_the_next_snapshot(
    lab: Lab,
) -> None:
    """QEMU keeps it, says so in words of its own, and it is said what to do."""
    vm = lab.qemu("vm", *blockdev("disk1", *lab.chain("disk1", 2)), machine="pc")
    shell = Shell(lab, admin(lab))
    snapshot = ("snapshot", "vm", "disk1", str(lab.folder / "overlay.qcow2"))
    shell.run("commit", "vm", "disk1", "--complete-when-ready", FAST)
    said = shell.run(*snapshot, code=1)
    vm.run("blockdev-del", {"node-name": "disk1-0"})
    shell.run(*snapshot)

    assert "is used as backing hd of 'disk1-0'" in said
    assert "remove it with blockdev-del" in said


@pytest.mark.parametrize("kind", ["drive"])
def test_a_refusal_is_told_in_words_and_changes_nothing(
    lab: Lab, vm: Qemu, disk: Disk, shell: Shell
) -> None:
    """Exit code 1, what stands in the way, and what can be done."""
    before, made = state(vm), files(lab)

    assert "one layer" in shell.run("commit", "vm", disk.device, code=1)
    assert "no device" in shell.run("commit", "vm", "disk7", code=1)
    assert "no VM" in shell.run("commit", "vm7", disk.device, code=1)
    assert "no block job" in shell.run("complete", "vm", "qbe-7", code=1)
    assert "grant" in shell.run("snapshot", "vm", disk.device, "/etc/overlay.qcow2", code=1)
    [problem] = shell.json("pause", "vm", "qbe-7", code=1)
    assert problem["type"] == "/api/v1/problems/unknown-job"
    assert (state(vm), files(lab)) == (before, made)


@pytest.mark.parametrize("kind", ["drive"])
def test_pause_resume_and_cancel_do_what_they_say(
    lab: Lab, vm: Qemu, disk: Disk, shell: Shell
) -> None:
    """A commit that is cancelled leaves the disk on its overlay."""
    overlay = overlaid(shell, lab, disk)
    shell.run("commit", "vm", disk.device, f"--job-id={JOB}", "--wait", FAST)

    shell.run("pause", "vm", JOB)
    paused = vm.job(JOB)
    assert paused is not None
    assert paused["paused"]
    shell.run("resume", "vm", JOB)
    assert "--force" in shell.run("cancel", "vm", JOB, code=1)
    shell.run("cancel", "vm", JOB, "--force")
    wait_until(lambda: not vm.run("query-jobs"), "the job is gone")
    assert "cancelled" in shell.run("jobs", "vm")
    assert disk.entry["inserted"]["file"] == str(overlay)


@pytest.mark.parametrize("kind", ["drive"])
def test_what_is_done_from_the_shell_is_in_the_audit_trail(lab: Lab, vm: Qemu, disk: Disk) -> None:
    """Under the name of the user of the file."""
    user = admin(lab)
    shell = Shell(lab, user)
    overlaid(shell, lab, disk)
    shell.run("commit", "vm", disk.device, f"--job-id={JOB}", "--complete-when-ready", FAST)

    done = audited(user.exporter, result="done", user=ALL)

    assert [line["action"] for line in done] == ["snapshot", "commit", "complete"]
    assert {line["vm"] for line in done} == {"vm"}
