"""What the tests need of the machine that no package brings: said in one sentence, before they begin.

usage: python -m tests.machine [--no-boots]
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

#: Where a systemd may keep its units' control groups: with version 1 beside 2, both; else the last.
_HYBRID = [Path(f"/sys/fs/cgroup/{name}") for name in ("systemd", "unified")]
_UNIFIED = Path("/sys/fs/cgroup")
#: From this systemd on, version 1 will not do.
_UNIFIED_ONLY = 256
#: What is done to mounts, in a namespace that is gone afterwards.
_MOUNTS = {
    "have mounts of its own": "mount --make-rprivate /",
    "mount": "mount -t tmpfs tmpfs /mnt && mkdir /mnt/upper /mnt/work /mnt/root",
    "mount an overlay over /": "mount -t overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work overlay /mnt/root",
}


def hierarchies() -> list[Path]:
    """Return where control groups are made for a systemd."""
    if (_UNIFIED / "cgroup.controllers").exists():
        return [_UNIFIED]
    return [each for each in _HYBRID if each.is_dir()]


def lacks() -> str:
    """Return what the tests need and this machine does not have, or nothing."""
    return next(_lacking(), "")


def lacks_to_boot() -> str:
    """Return what it takes to boot a systemd and this machine does not have, or nothing."""
    return lacks() or next(_lacking_to_boot(), "")


def _lacking() -> Iterator[str]:
    if os.geteuid():
        yield "the tests need root: some mount file systems, and some boot a systemd"
    done = ":"
    for what, command in _MOUNTS.items():
        if error := _fails("unshare", "--mount", "sh", "-ec", f"{done}; {command}"):
            yield f"the tests need a machine on which root may {what}: {error}"
        done = f"{done}; {command}"
    if not Path("/dev/fuse").exists():
        yield "the tests need /dev/fuse: some look through file systems that they can stop"


def _lacking_to_boot() -> Iterator[str]:
    where = "the tests that boot a systemd need"
    if error := _fails("unshare", "--user", "true"):
        yield f"{where} user namespaces, which a chroot does not have (a root entered by pivot_root has): {error}"
    groups = hierarchies()
    if not groups:
        yield f"{where} control groups at {_UNIFIED}, and there are none"
    for each in groups:
        below = each / f"qbe-{os.getpid()}"
        try:
            below.mkdir()
            below.rmdir()
        except OSError as error:
            yield f"{where} to make control groups in {each}: {error.strerror}"
    version = re.search(r"\d+", _output("systemctl", "--version"))
    if version and int(version[0]) >= _UNIFIED_ONLY and groups != [_UNIFIED]:
        yield f"{where} control groups of version 2 alone, since systemd {version[0]} takes no others"


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:
        return ""


def _fails(*command: str) -> str:
    """Return the last line that a command says if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = (done.stderr or done.stdout).strip() or f"{command[0]} exits with {done.returncode}"
    return said.splitlines()[-1] if done.returncode else ""


if __name__ == "__main__":
    sys.exit((lacks() if "--no-boots" in sys.argv else lacks_to_boot()) or None)
