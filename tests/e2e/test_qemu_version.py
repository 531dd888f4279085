"""Which QEMU the tests run on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.lab import QEMU_VERSION, Lab, tool, version_of

PROGRAMS = ("qemu-system-x86_64", "qemu-storage-daemon", "qemu-img", "qemu-io", "qemu-nbd")


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_is_of_the_version_that_is_meant(program: str) -> None:
    """All are of one folder: a disk made by one version says little about another."""
    assert Path(tool(program)).parent == Path(tool("qemu-system-x86_64")).parent
    assert version_of(program) == (QEMU_VERSION or version_of("qemu-system-x86_64"))


def test_what_answers_is_the_program_that_path_leads_to(lab: Lab) -> None:
    """By the greeting of a VM and of a storage daemon."""
    assert lab.qemu("vm").version == version_of("qemu-system-x86_64")
    assert lab.storage_daemon("daemon").version == version_of("qemu-storage-daemon")
