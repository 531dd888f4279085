"""The image, really built and run, without a daemon and without a registry.

buildah follows the Dockerfile as it is. Only the base is a stand-in: this machine's own Python at the
place where the official image has it, the C libraries that it needs, pip, and nothing else: no
shell. podman runs what was built by runc, in namespaces of its own.

A `docker run` differs in what a machine without its privileges cannot do, and nothing here tests it:
build steps run in a chroot; there is no docker daemon, and so
nobody who restarts what is unhealthy: the health check is run by hand.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.e2e.lab import ROOT, Memory, Process, tool, wait_until

IMAGE = "localhost/qemu-block-exporter"
BASE = "localhost/python-stand-in"
#: What the official slim images leave out as well, or what no test asks about.
_WITHOUT = ("test", "idlelib", "tkinter", "lib2to3", "turtledemo", "ensurepip", "config-*",
            "site-packages", "dist-packages", "pydoc_data", "EXTERNALLY-MANAGED")  # fmt: skip
#: What the requirements of the image name, for this machine's Python: `make test` fetches it, once.
WHEELS = Path(sys.prefix) / "wheels"
#: No systemd, no journal, and nothing in /dev/shm or /run; limits that a sandbox may set, and none that
#: needs a controller of control groups.
_CONTAINERS_CONF = """
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
lock_type = "file"
runtime = "runc"
tmp_dir = "{folder}/tmp"
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
pids_limit = 0
"""
_COMMON = ("libpthread", "libdl", "librt", "libutil", "libm", "libgcc_s")
_ASK = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1], timeout=20).read().decode())"
_PIP_CONF = "[global]\nno-index = true\nfind-links = /wheels\n"


class Engine:
    """buildah and podman, with a store of their own."""

    def __init__(self, folder: Path) -> None:
        # In memory: an overlay cannot lie on an overlay, such as a container's own file system.
        self._memory = Memory(folder / "memory", mib=2048)
        self.folder = folder = folder / "memory"
        self._store = ("--root", f"{folder}/store", "--runroot", f"{folder}/run",
                       "--storage-driver", "overlay")  # fmt: skip

    def build(self, *arguments: str) -> str:
        """Build the image, and return its id."""
        conf = self.folder / "pip.conf"
        if not conf.exists():
            self._stand_in()
            conf.write_text(_PIP_CONF)
        volumes = [f"--volume={WHEELS}:/wheels:ro", f"--volume={conf}:/etc/pip.conf:ro"]
        command = ["build", "--isolation=chroot", "--format=docker", "--quiet", "--network=host"]
        # Limits that a sandbox may set, as in containers.conf: buildah would raise them by itself.
        command += ["--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"]
        base = f"--build-arg=PYTHON_IMAGE={BASE}"
        return self.buildah(
            *command, base, *volumes, *arguments, "--tag", IMAGE, str(ROOT)
        ).split()[-1]

    def inspect(self) -> dict[str, Any]:
        """Return what the image says of itself."""
        config: dict[str, Any] = json.loads(self.podman("image", "inspect", IMAGE))[0]
        return config

    def buildah(self, *arguments: str) -> str:
        return _output([tool("buildah"), *self._store, *arguments])

    def podman(self, *arguments: str) -> str:
        return _output(self._podman(*arguments))

    def run(self, name: str, *options: str, flags: Sequence[str] = ()) -> Container:
        """Start a container of the image."""
        command = self._podman("run", "--rm", f"--name={name}", *options)
        return Container(self, name, [*command, IMAGE, *flags])

    def close(self) -> None:
        """Leave nothing behind."""
        subprocess.run([*self._podman("rm", "--all", "--force", "--time=0")], check=True,
                       capture_output=True)  # fmt: skip
        self._memory.close()

    def _podman(self, *arguments: str) -> list[str]:
        settings = self.folder / "containers.conf"
        if not settings.exists():
            settings.write_text(_CONTAINERS_CONF.format(folder=self.folder))
        return [tool("env"), f"CONTAINERS_CONF={settings}", "podman", *self._store, *arguments]

    def _stand_in(self) -> None:
        root = self.folder / "base"
        version = f"python{sysconfig.get_python_version()}"
        for each in ("usr/local/bin", "etc", "lib", "tmp", "dev", "proc", "sys", "run"):
            (root / each).mkdir(parents=True)
        (root / "tmp").chmod(0o1777)
        python = root / "usr" / "local" / "bin" / version
        shutil.copy2(os.path.realpath(sys.executable), python)
        (python.parent / "python3").symlink_to(version)
        library = root / "usr" / "local" / "lib" / version
        ignore = shutil.ignore_patterns(*_WITHOUT)
        shutil.copytree(sysconfig.get_path("stdlib"), library, ignore=ignore, symlinks=True)
        import pip  # noqa: PLC0415  # the one of the environment that the tests run in

        packages = library / "site-packages"
        shutil.copytree(Path(pip.__file__).parent, packages / "pip", ignore=ignore)
        # Debian's Python looks for packages under this name.
        (library / "dist-packages").symlink_to("site-packages")
        _copy_libraries(root, [python, *library.rglob("*.so")])
        (self.folder / "Base").write_text("FROM scratch\nADD base /\nENV PATH=/usr/local/bin\n")
        self.buildah("build", "--quiet", "--format=docker", f"--file={self.folder}/Base",
                     "--tag", BASE, str(self.folder))  # fmt: skip


class Container(Process):
    """A container that runs."""

    def __init__(self, engine: Engine, name: str, command: Sequence[str]) -> None:
        self.name = name
        self._engine = engine
        super().__init__(command, engine.folder / f"{name}.log")

    def pid_on_host(self) -> int:
        """Return the number that its first process has outside."""
        return int(self._engine.podman("inspect", "--format={{.State.Pid}}", self.name))

    def healthcheck(self) -> int:
        """Run the health check of the image inside, and return its exit code."""
        return subprocess.run(self._engine._podman("healthcheck", "run", self.name),
                              check=False, capture_output=True).returncode  # fmt: skip

    def get(self, path: str) -> str:
        """Return the body at a path, asked for from inside."""
        url = wait_until(self._listens_at, f"{self.name} listens")
        return self._engine.podman("exec", self.name, "python3", "-ISc", _ASK, url + path)

    def until(self, holds: Callable[[str], object]) -> str:
        """Scrape until something holds, and return the exposition in which it first did."""

        def scrape() -> str:
            text = self.get("/metrics")
            return text if holds(text) else ""

        return str(wait_until(scrape, "a scrape"))

    def _listens_at(self) -> str | None:
        assert self.exit_code is None, self.said()
        found = re.search(r"msg=listening address=(\S+)", self.said())
        return f"http://{found[1]}" if found else None

    def close(self) -> None:
        """Stop it as `docker stop` does, and see that it went at once and without complaint."""
        if self.exit_code is None:
            self._engine.podman("stop", "--time=20", self.name)
        assert self.wait() == 0, self.said()


def _copy_libraries(root: Path, binaries: Sequence[Path]) -> None:
    listed = _output([tool("ldd"), *map(str, binaries)])
    found = {word for word in listed.split() if word.startswith("/") and not word.endswith(":")}
    # What wheels may rest on: the parts of the C library, and what every official image has.
    known = [line.split(" => ") for line in _output([tool("ldconfig"), "-p"]).splitlines()]
    found |= {path for name, *paths in known for path in paths
              if name.split()[0].partition(".so")[0] in _COMMON and ",x32" not in name}  # fmt: skip
    for path in sorted(found):
        target = root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)


def _output(command: Sequence[str]) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout
