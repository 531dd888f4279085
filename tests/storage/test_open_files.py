"""The files that a QEMU has open, seen from the side."""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from exporter.qmp import peer
from exporter.storage import open_files
from exporter.storage.file_stat import stat_file
from exporter.storage.open_files import OpenFile
from tests.fakeqmp import until

#: The lock that QEMU takes on each image: OFD, on bytes from 100 on. [fcntl(2)]
_OFD_SETLK = 37


@asynccontextmanager
async def running(
    tmp_path: Path, name: bytes, *files: int, **more: Any
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process of this name that has files open."""
    program = os.fsencode(tmp_path) + b"/" + name
    os.symlink("/bin/sleep", program)
    process = await asyncio.create_subprocess_exec(program, "60", pass_fds=files, **more)
    try:
        # Until then it is a copy of this one.
        await until(lambda: open_files.read(process.pid) is not None)
        yield process
    finally:
        process.kill()
        await process.wait()


def by_name(process: int) -> dict[str, OpenFile]:
    """Return what a QEMU has open."""
    opened = open_files.read(process)
    assert opened is not None
    return {file.name: file for file in opened.files}


@pytest.mark.parametrize("name", [b"qemu-system-x", b"kvm", b"qemu:half-a-\xc3"])
async def test_the_files_that_a_qemu_has_open_are_known(tmp_path: Path, name: bytes) -> None:
    """They are the images, before query-block tells which; with their numbers and mounts."""
    image = tmp_path / "a.qcow2"
    with image.open("w+") as file:
        async with running(tmp_path, name, file.fileno()) as qemu:
            opened = open_files.read(qemu.pid)
            found = by_name(qemu.pid)[str(image)]
    device = image.stat().st_dev

    assert opened is not None
    assert (opened.process, opened.same_names, opened.folder) == (qemu.pid, True, os.getcwd())
    assert found.inode == str(image.stat().st_ino)
    assert found.mount.device == f"{os.major(device)}:{os.minor(device)}"
    assert not found.is_locked


async def test_a_file_without_a_name_is_seen_by_its_descriptor(tmp_path: Path) -> None:
    """It is asked for as it is open, whatever has its name by now."""
    image = tmp_path / "a (deleted)"
    with image.open("w+") as file:
        identity = stat_file(str(image)).identity
        image.unlink()
        image.write_text("another")
        async with running(tmp_path, b"qemu", file.fileno()) as qemu:
            found = by_name(qemu.pid)[str(image)]
            sight = stat_file(found.path)

    assert sight.identity == identity != stat_file(str(image)).identity
    assert (sight.visible, sight.size_bytes) == (True, stat_file(str(tmp_path)).size_bytes)


async def test_what_is_no_image_is_not_asked(tmp_path: Path) -> None:
    """A log on a server that is dead freezes nobody, nor a folder that is shared with the guest."""
    (tmp_path / "log").touch()
    flags = {
        "image": os.O_RDWR | os.O_CREAT,
        "iso": os.O_RDONLY | os.O_CREAT,
        "log": os.O_WRONLY | os.O_APPEND,
        "": os.O_RDONLY | os.O_DIRECTORY,
    }
    files = [os.open(tmp_path / name, each) for name, each in flags.items()]
    files.append(os.open(tmp_path / "log", os.O_PATH))
    async with running(tmp_path, b"qemu", *files) as qemu:
        found = by_name(qemu.pid)
    for file in files:
        os.close(file)

    assert {name for name in found if name.startswith(str(tmp_path))} == {
        str(tmp_path / "image"), str(tmp_path / "iso"),
    }  # fmt: skip


async def test_an_image_is_known_by_the_lock_that_qemu_takes(tmp_path: Path) -> None:
    """Other files are locked otherwise: the file of its pid, as a whole."""
    files = {name: os.open(tmp_path / name, os.O_RDWR | os.O_CREAT) for name in ("image", "pid")}
    for name, start, length in (("image", 100, 2), ("pid", 0, 0)):
        lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
        fcntl.fcntl(files[name], _OFD_SETLK, lock)
    async with running(tmp_path, b"qemu", *files.values()) as qemu:
        found = by_name(qemu.pid)
    for file in files.values():
        os.close(file)

    assert found[str(tmp_path / "image")].is_locked
    assert not found[str(tmp_path / "pid")].is_locked


async def test_the_files_of_a_qemu_in_a_namespace_of_its_own_are_seen(tmp_path: Path) -> None:
    """On mounts that are nowhere else; its names are looked for where it is, links as well."""
    own = tmp_path / "own"
    own.mkdir()
    program = tmp_path / "qemu"
    program.symlink_to("/bin/sleep")
    script = (
        f"mount -t tmpfs none {own} && touch {own}/a && ln -s {own}/a {own}/link"
        f" && exec {program} 60 <>{own}/a"
    )
    command = ["unshare", "-m", "--propagation", "private", "sh", "-c", script]
    qemu = await asyncio.create_subprocess_exec(*command)
    try:
        await until(lambda: open_files.read(qemu.pid))
        opened, found = open_files.read(qemu.pid), by_name(qemu.pid)[str(own / "a")]
        sight = stat_file(found.path)
        names = [stat_file(f"/proc/{qemu.pid}/root{own}/{name}") for name in ("a", "link", "gone")]
    finally:
        qemu.kill()
        await qemu.wait()

    assert opened is not None
    assert not opened.same_names
    assert found.mount.point == str(own)
    assert sight.identity is not None
    assert [name.identity for name in names] == [sight.identity, sight.identity, None]
    assert names[2].missing
    assert not (own / "a").exists()


def test_the_numbers_of_open_files_are_known(tmp_path: Path) -> None:
    """A new file has a new one, and a process that cannot be seen has none."""
    with (tmp_path / "a").open("w"), (tmp_path / "b").open("w") as opened:
        assert str(opened.fileno()) in peer.descriptors(os.getpid())

    assert peer.descriptors(0) == ()


def test_the_files_of_another_process_say_nothing() -> None:
    """A manager that made the socket for QEMU, or a process that cannot be seen."""
    child = subprocess.Popen(["true"])
    child.wait()

    assert open_files.read(os.getpid()) is None
    assert open_files.read(0) is None
    assert open_files.read(child.pid) is None


async def test_a_qemu_that_has_not_opened_a_file_does_not_have_it(tmp_path: Path) -> None:
    """Whatever it answers; of one whose files are not seen nobody knows."""
    image, other = tmp_path / "a.qcow2", tmp_path / "b.qcow2"
    other.touch()
    with image.open("w+") as file:
        async with running(tmp_path, b"qemu-system-x", file.fileno()) as qemu:
            found = [open_files.may_have(qemu.pid, {path.stat().st_ino}) for path in (image, other)]

    assert found == [True, False]
    assert open_files.may_have(0, {other.stat().st_ino})
