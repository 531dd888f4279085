"""The commands that look: tables for people, documents for scripts."""

from __future__ import annotations

import asyncio
import json
import time

import msgspec
import pytest

from exporter.api.types import JobList, Vm, VmList
from tests.fakeapi import FakeApi, device, ended, job, problem, ready, vm
from tests.shell import FAST, Shell

HOSTILE = "[red]a[/red]\x1b[2J\n\u202e\x9b31m:smile:"
SHOWN = r"[red]a[/red]\x1b[2J\n\u202e\x9b31m:smile:"


async def test_vms_are_one_a_line(shell: Shell, api: FakeApi) -> None:
    """With the reason of those that are down; columns are as wide as names."""
    api.vms = [
        vm("w" * 200, manager="libvirt"),
        vm("db", up=False, reason="busy", status=None, qemu_version=None, device_count=None,
           job_count=None, backing_depth_max=None),
        vm("nfs", storage_responding=False),
    ]  # fmt: skip

    assert await shell("vms") == 0
    head, *rows = shell.out.splitlines()
    assert head.split() == ["VM", "UP", "STATUS", "QEMU", "MANAGER", "DISKS", "DEPTH", "JOBS"]
    assert [row.split() for row in rows] == [
        ["w" * 200, "yes", "running", "10.0.2", "libvirt", "1", "2", "0"],
        ["db", "busy", "-", "-", "-", "-", "-", "-"],
        ["nfs", "storage", "hangs", "running", "10.0.2", "-", "1", "2", "0"],
    ]
    assert "\t" not in shell.out
    assert all(line == line.rstrip() for line in shell.out.splitlines())
    assert len({row.index(row.split()[2]) for row in rows[:2]} | {head.index("STATUS")}) == 1


async def test_jobs_are_one_a_line_and_those_that_ended_are_last(
    shell: Shell, api: FakeApi
) -> None:
    """Those that ended long ago are shown where that is asked for."""
    now = time.time()
    api.lives = {
        "old": [ended("completed", "old", ended_timestamp_seconds=now - 90_000)],
        "new": [ended("failed", "new", error="No space left", ended_timestamp_seconds=now)],
        "run": [job("run", speed_limit_bytes_per_second=1024**2)],
        "end": [ready("end")],
    }

    assert await shell("jobs") == 0
    head, *rows = shell.out.splitlines()
    assert head.split() == [
        "VM", "JOB", "TYPE", "DEVICE", "STATUS", "PROGRESS", "RATE", "ETA", "LIMIT", "ERROR",
    ]  # fmt: skip
    assert [row.split() for row in rows] == [
        ["web", "end", "commit", "disk0", "ready", "ready", "-", "-", "-", "-"],
        ["web", "run", "commit", "disk0", "running", "25%", "-", "-", "1.0", "MiB/s", "-"],
        ["web", "new", "commit", "disk0", "failed", "25%", "-", "-", "-", "No", "space", "left"],
    ]
    assert await shell("jobs", "web", "--all") == 0
    assert len(shell.out.splitlines()) == 5
    assert api.asked[-1][1] == "/api/v1/vms/web/block-jobs"


async def test_a_chain_is_shown_from_the_active_layer_down(shell: Shell, api: FakeApi) -> None:
    """With what is at work on it."""
    mirror = job("mir", job_type="mirror", top=None, base=None)
    api.vms = [vm(jobs=[job(top=0, base=1), mirror], devices=[device(), device("cd", 0)],
                  manager="incus")]  # fmt: skip

    assert await shell("chain", "web", "disk0") == 0
    assert shell.out == (
        "web: running, QEMU 10.0.2, managed by incus\n"
        "\n"
        "disk0: depth 2\n"
        "LAYER  NODE     DRIVER  FILE              VIRTUAL  ALLOCATED  JOBS\n"
        "    0  #block0  qcow2   /images/0.qcow2  20.0 GiB    1.0 GiB  top of qbe-1 (commit, running)\n"
        "    1  #block1  qcow2   /images/1.qcow2  20.0 GiB    1.5 GiB  base of qbe-1 (commit, running)\n"
        "    2  #block2  qcow2   /images/2.qcow2  20.0 GiB    2.0 GiB  -\n"
        "running: mir (mirror, running)\n"
    )
    assert await shell("chain", "web") == 0
    assert "\ncd: depth 0\n" in shell.out


async def test_a_chain_says_what_is_odd(shell: Shell, api: FakeApi) -> None:
    """An empty drive, an I/O error, a depth that is meant, a VM that is down."""
    odd = msgspec.structs.replace(
        device("x", 0), layers=[], inserted=False, read_only=True, io_status="nospace",
        expected_backing_depth=1, backing_depth=None,
    )  # fmt: skip
    api.vms = [vm(up=False, reason="busy", status=None, qemu_version=None, devices=[odd])]

    assert await shell("chain", "web") == 0
    assert shell.out == (
        "web: down: busy\n\nx: empty, expected 1, read-only, I/O status nospace\n"
    )


async def test_a_chain_of_no_disk_is_code_1(shell: Shell, api: FakeApi) -> None:
    """Those that there are, are named."""
    assert await shell("chain", "web", "disk9") == 1
    assert shell.err == "web has no device disk9; it has: disk0\n"


async def test_a_vm_that_is_not_known_is_code_1(shell: Shell, api: FakeApi) -> None:
    """With the command that lists those that are."""
    assert await shell("chain", "other") == 1
    assert shell.err == (
        "refused: It is unknown-vm: all about unknown-vm\n"
        f"see qemu-block-exporter vms --url={api.url}\n"
    )


async def test_an_url_of_something_else_is_code_1(shell: Shell, api: FakeApi) -> None:
    """It is asked whether it is the right one."""
    api.prefix = "/qemu"
    assert await shell("vms", f"--url=http://127.0.0.1:{api.port}") == 1
    assert "is --url that of an exporter" in shell.err


async def test_json_is_one_document_of_the_api(shell: Shell, api: FakeApi) -> None:
    """Numbers exact, in one line of ASCII without control characters."""
    api.vms = [vm(HOSTILE + "\x7f", devices=[device(), device("disk1")], jobs=[job()])]
    api.lives = {"qbe-1": [job()]}
    for command, kind in (
        (["vms"], VmList),
        (["jobs"], JobList),
        (["chain", HOSTILE + "\x7f"], Vm),
    ):
        assert await shell(*command, "--json") == 0
        assert (shell.out.count("\n"), shell.out[:-1].isprintable()) == (1, True)
        msgspec.json.decode(shell.out, type=kind)
    assert msgspec.json.decode(shell.out, type=Vm) == api.vms[0]
    assert await shell("chain", HOSTILE + "\x7f", "disk1", "--json") == 0
    assert [each["device"] for each in json.loads(shell.out)["devices"]] == ["disk1"]


async def test_names_cannot_act_on_the_terminal(shell: Shell, api: FakeApi) -> None:
    """Neither control characters nor markup."""
    hostile = msgspec.structs.replace(device(HOSTILE), io_status=HOSTILE)
    layer = msgspec.structs.replace(
        hostile.layers[0], node_name=HOSTILE, file=HOSTILE, driver=HOSTILE
    )
    hostile = msgspec.structs.replace(hostile, layers=[layer])
    bad = job(HOSTILE, vm=HOSTILE, device=HOSTILE, job_type=HOSTILE, status=HOSTILE, error=HOSTILE)
    api.vms = [vm(HOSTILE, manager=HOSTILE, status=HOSTILE, qemu_version=HOSTILE,
                  devices=[hostile], jobs=[bad])]  # fmt: skip
    api.lives = {HOSTILE: [bad]}
    for command in (["vms"], ["jobs"], ["chain", HOSTILE], ["chain", HOSTILE, "\x1b[2J"]):
        await shell(*command)
        said = shell.out + shell.err
        assert SHOWN in said
        assert said.replace("\n", "").isprintable()
    api.posts = [problem(HOSTILE, 409, job=bad, title=HOSTILE, detail=HOSTILE)]
    assert await shell("pause", HOSTILE, HOSTILE) == 1
    assert shell.err.replace("\n", "").isprintable()
    assert await shell("pause", HOSTILE, HOSTILE) == 0
    assert shell.out.replace("\n", "").isprintable()


async def test_a_name_without_end_is_cut(shell: Shell, api: FakeApi) -> None:
    """One line must not bury the others."""
    api.lives = {"x": [job("x" * 10_000, error="e" * 10_000)]}

    assert await shell("jobs") == 0
    assert max(map(len, shell.out.splitlines())) < 2000
    assert "x…" in shell.out


# Watching.


async def test_watching_into_a_pipe_is_a_table_each_time(shell: Shell, api: FakeApi) -> None:
    """With rates from the second on; a failed poll is said once, and tried on."""
    gib = 1024**3
    api.lives = {"j": [job("j", offset_bytes=gib), job("j", offset_bytes=2 * gib)]}
    watching = asyncio.create_task(shell("jobs", "--watch", FAST))
    await api.until(lambda: api.polls() > 3)
    api.gets = [problem("vm-down", 503)] * 3
    await api.until(lambda: not api.gets)
    polls = api.polls()
    await api.until(lambda: api.polls() > polls + 1)
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching
    out, err = shell._capsys.readouterr()

    assert out.count("VM ") >= 4
    assert err == "retrying: It is vm-down: all about vm-down\n"


async def test_watching_in_json_is_a_line_each_time(shell: Shell, api: FakeApi) -> None:
    """Each one a document."""
    watching = asyncio.create_task(shell("jobs", "--watch", "--json", FAST))
    await api.until(lambda: api.polls() > 3)
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching
    out, _ = shell._capsys.readouterr()

    for line in out.splitlines():
        msgspec.json.decode(line, type=JobList)
    assert out.count("\n") >= 3


async def test_watching_what_is_not_there_is_code_1(shell: Shell, api: FakeApi) -> None:
    """The first poll tells a mistake from an exporter that restarts."""
    await api.stop()

    assert await shell("jobs", "--watch") == 1
