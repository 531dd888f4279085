"""QEMU of another Debian release, made from its packages: kept, and made anew when it is broken."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

INSTALL = Path(__file__).parent.parent / "qemu" / "install"
MIRROR = "http://mirror.test/debian/"
#: Debian's tools, as far as the script uses them: a package is a name, its programs say a version.
TOOLS = {
    "apt-get": f"""
        case "$*" in
        indextargets*) echo {MIRROR} ;;
        *" update") echo update >>"$SAID"; [ ! -e "$GONE" ] ;;
        *" install "*)
            for option; do case $option in Dir::Cache=*) archives=${{option#*=}}/archives ;; esac; done
            cat "${{archives%/archives}}/sources.list" >>"$SAID"
            touch "$archives/qemu.deb" "$archives/libc6.deb"
            if [ -e "$KILL" ]; then kill -KILL $PPID; fi ;;
        esac""",
    "dpkg-deb": """
        case $2 in *libc6.deb)
            mkdir -p "$3/lib/x86_64-linux-gnu"
            touch "$3/lib/x86_64-linux-gnu/ld-2.31.so"
            exit ;;
        esac
        mkdir -p "$3/usr/bin"
        for program in qemu-system-x86_64 qemu-img qemu-io qemu-nbd qemu-storage-daemon; do
            printf '#!/bin/sh\\necho 5.2\\n' >"$3/usr/bin/$program"
            chmod +x "$3/usr/bin/$program"
        done""",
    "patchelf": "",
}


class Machine:
    """A machine with a cache, and a mirror that may be gone or cut off."""

    def __init__(self, folder: Path) -> None:
        self.cache = folder / "cache"
        self.said, self.gone, self.kill = (folder / name for name in ("said", "gone", "kill"))
        tools = folder / "tools"
        tools.mkdir()
        for name, script in TOOLS.items():
            (tools / name).write_text(f"#!/bin/sh\n{script}\n")
            (tools / name).chmod(0o755)
        named = {"QEMU_CACHE": self.cache, "SAID": self.said, "GONE": self.gone, "KILL": self.kill}
        self._environment = {
            **{name: str(path) for name, path in named.items()},
            "PATH": f"{tools}:{os.environ['PATH']}",
        }

    def install(self, **more: str) -> subprocess.CompletedProcess[str]:
        environment = {**self._environment, **more}
        command = [str(INSTALL), "bullseye"]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    def programs(self, **more: str) -> Path:
        """Return the folder that is printed, whose programs all run."""
        done = self.install(**more)
        assert done.returncode == 0, done.stderr
        folder = Path(done.stdout.rstrip())
        said = subprocess.run([folder / "qemu-img"], capture_output=True, text=True, check=True)
        assert said.stdout == "5.2\n"
        return folder

    @property
    def updates(self) -> int:
        """How often the mirror was asked."""
        return self.said.read_text().splitlines().count("update")

    @property
    def builds(self) -> list[Path]:
        return [path for path in self.cache.iterdir() if path.is_dir() and not path.is_symlink()]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_it_is_made_once_from_the_mirror_of_this_machine(machine: Machine) -> None:
    """The next run asks nobody."""
    first = machine.programs()
    assert first.is_relative_to(machine.cache)
    assert f"] {MIRROR} bullseye main" in machine.said.read_text()
    assert machine.programs() == first
    assert machine.updates == 1


def test_another_mirror_may_be_named(machine: Machine) -> None:
    machine.programs(QEMU_DEBIAN_MIRROR="http://archive.test/debian")
    assert "] http://archive.test/debian bullseye main" in machine.said.read_text()


def test_what_does_not_run_is_made_anew(machine: Machine) -> None:
    (machine.programs() / "qemu-io").write_text("#!/bin/sh\nexit 1\n")
    machine.programs()
    assert machine.updates == 2


def test_an_update_is_made_when_asked_for_and_the_tests_that_run_keep_theirs(
    machine: Machine,
) -> None:
    """The version before goes with the next update."""
    first = machine.programs()
    second = machine.programs(QEMU_UPDATE="1")
    assert second != first
    assert first.exists()
    third = machine.programs(QEMU_UPDATE="1")
    assert not first.exists()
    assert second.exists()
    assert third not in {first, second}


def test_one_that_was_cut_off_half_way_is_never_used(machine: Machine) -> None:
    """What it left is removed by the next."""
    machine.kill.touch()
    assert machine.install().returncode != 0
    assert not (machine.cache / "bullseye").exists()
    assert len(machine.builds) == 1
    machine.kill.unlink()
    machine.programs()
    assert len(machine.builds) == 1


def test_an_update_that_fails_says_why_and_leaves_what_was_there(machine: Machine) -> None:
    first = machine.programs()
    machine.gone.touch()
    failed = machine.install(QEMU_UPDATE="1")
    assert (failed.returncode, failed.stdout) == (1, "")
    assert f"cannot get the packages of bullseye from {MIRROR}" in failed.stderr
    assert machine.programs() == first
