"""What is released, built once for all tests that look at it."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Packages:
    """A folder with everything in it, and the environment that the SBOM is of."""

    folder: Path

    @property
    def wheel(self) -> Path:
        return self._only("*.whl")

    @property
    def sdist(self) -> Path:
        return self._only("*.tar.gz")

    @property
    def sbom(self) -> Path:
        return self._only("*.cdx.json")

    @functools.cached_property
    def deb(self) -> Path:
        """The Debian package, built when a test first asks for it."""
        build("deploy/debian/build", self.folder)
        return self._only("*.deb")

    @property
    def python(self) -> Path:
        """The interpreter of an environment that has the wheel and what it needs, and nothing else."""
        return self.folder / ".environment/bin/python"

    def _only(self, pattern: str) -> Path:
        (found,) = self.folder.glob(pattern)
        return found


def build(script: str, folder: Path) -> None:
    """Run a script of the Makefile."""
    run([ROOT / script, folder], env=os.environ | {"PYTHON": sys.executable})


def run(command: Sequence[str | Path], **more: Any) -> str:
    """Run a command, which must succeed, and return what it says."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, **more)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return str(done.stdout)


def tracked() -> set[str]:
    """Return what git has of this tree; of one without git, as an sdist is unpacked, what it would take."""
    if (ROOT / ".git").exists():
        return set(run(["git", "-C", ROOT, "ls-files"]).splitlines())
    return untracked()


def untracked() -> set[str]:
    """Return what git does not have, and would take."""
    return set(_git("ls-files", "--others", "--exclude-standard").splitlines())


def is_ignored(*paths: Path) -> bool:
    """Whether git takes none of these files."""
    # Of all of them, those that it names; none is an error to it.
    ignored = _git(
        "check-ignore", "--no-index", "--verbose", "--non-matching", *map(str, paths), fails=1
    )
    return not any(line.startswith("::") for line in ignored.splitlines())


def _git(*arguments: str, fails: int = 0) -> str:
    """Run git on this tree; that it ends with `fails` is no error."""
    with tempfile.TemporaryDirectory() as folder:
        place = [] if (ROOT / ".git").exists() else [f"--git-dir={folder}", f"--work-tree={ROOT}"]
        if place:
            run(["git", "init", "--quiet", "--bare", folder])
        command = ["git", *place, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        assert done.returncode in {0, fails}, f"{command}: {done.stderr}"
        return done.stdout


def install(python: Path | str, what: Path, folder: Path, *flags: str) -> Path:
    """Install something into an empty environment, and return the environment's interpreter."""
    run([python, "-m", "venv", "--without-pip", folder])
    into = folder / "bin/python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(into)]
    environment = os.environ | {"PIP_CONSTRAINT": str(ROOT / "constraints.txt")}
    run([*pip, "install", "--quiet", *flags, what], env=environment)
    return into


def other_pythons() -> list[str]:
    """Return an interpreter of each other minor version from 3.12 on that this machine has."""
    found = {}
    for minor in (12, 13, 14):
        folders = [f"/usr/bin/python3.{minor}"]
        if pyenv := shutil.which("pyenv"):
            root = Path(
                subprocess.run(
                    [pyenv, "root"], capture_output=True, text=True, check=True
                ).stdout.strip()
            )
            folders += sorted(map(str, root.glob(f"versions/3.{minor}.*/bin/python3")))
        found[minor] = next((path for path in reversed(folders) if Path(path).exists()), "")
    return [path for minor, path in found.items() if path and minor != sys.version_info.minor]
