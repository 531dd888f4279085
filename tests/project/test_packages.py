"""Wheel, sdist, SBOM and Debian package: what is in them, and that they run where nothing else is."""

from __future__ import annotations

import filecmp
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from exporter import __version__
from tests.completions import PLACES
from tests.packages import ROOT, Packages, build, install, other_pythons, run, tracked, untracked
from tests.program import exporter

SHARE = ["man/man1/qemu-block-exporter.1", *(place for _, place in PLACES.values())]


# Wheel and sdist.


def test_the_wheel_has_licence_man_page_and_completions(packages: Packages) -> None:
    """And of Python files the program alone: neither tests nor benchmarks."""
    with zipfile.ZipFile(packages.wheel) as wheel:
        names = wheel.namelist()
        metadata = Parser().parsestr(
            wheel.read(f"qemu_block_exporter-{__version__}.dist-info/METADATA").decode()
        )

    folders = {
        name.split("/")[0].removeprefix(f"qemu_block_exporter-{__version__}") for name in names
    }
    assert folders == {"exporter", ".data", ".dist-info"}
    data = f"qemu_block_exporter-{__version__}.data/data/share/"
    assert {name.removeprefix(data) for name in names if name.startswith(data)} == set(SHARE)
    assert metadata["License-Expression"] == "Apache-2.0"
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_classifiers_are_of_every_python_that_is_allowed() -> None:
    """From requires-python on, without a gap."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    versions = [c.rpartition(" ")[2] for c in project["classifiers"] if "Python :: 3." in c]

    assert versions == ["3.11", "3.12", "3.13", "3.14"]
    assert project["requires-python"] == ">=3.11.2"


def test_the_sdist_has_everything_that_git_has(packages: Packages) -> None:
    """Packages are built and tests are run from it; how CI starts is not part of it."""
    has = tracked()
    with tarfile.open(packages.sdist) as sdist:
        held = {name.partition("/")[2] for name in sdist.getnames()}

    assert {name for name in has - held if (ROOT / name).exists()} <= {".ci/run"}
    assert held - has <= {"PKG-INFO"} | untracked()


def test_two_builds_are_the_same_to_the_byte(packages: Packages, tmp_path: Path) -> None:
    """Of the tree, and of what was unpacked from the sdist: whoever doubts a release builds it."""
    with tarfile.open(packages.sdist) as sdist:
        (member,) = [m for m in sdist if m.name.endswith("/PKG-INFO")]
    run(["tar", "-xf", packages.sdist, "-C", tmp_path])
    (unpacked,) = tmp_path.iterdir()
    environment = os.environ | {"SOURCE_DATE_EPOCH": str(member.mtime)}
    run([sys.executable, "-m", "hatchling", "build", "-d", tmp_path], cwd=unpacked, env=environment)

    for first in (packages.wheel, packages.sdist):
        assert filecmp.cmp(first, tmp_path / first.name, shallow=False), first.name


async def test_the_wheel_runs_in_an_empty_environment(packages: Packages) -> None:
    """It says its version, collects once, and serves."""
    command = packages.python.parent / "qemu-block-exporter"
    # An exporter that finds no socket says so: this is the point at which all is loaded.
    once = run([command, "once", "--qmp.sockets=/nonexistent/*.sock"], cwd="/")

    assert run([command, "--version"]).startswith(f"qemu-block-exporter, version {__version__}\n")
    assert f'qemu_exporter_build_info{{version="{__version__}"' in once
    async with exporter("--qmp.sockets=/nonexistent/*.sock", command=[str(command)]) as running:
        assert (await running.get("/-/healthy"))[0] == 200
        status, text = await running.get("/metrics")
    assert (status, "qemu_exporter_targets 0\n" in text) == (200, True)
    for name in SHARE:
        assert (packages.python.parent.parent / "share" / name).exists()


def test_the_sdist_can_be_installed(packages: Packages, tmp_path: Path) -> None:
    """pip builds it by what pyproject.toml asks for, on a machine that has none of it."""
    python = install(sys.executable, packages.sdist, tmp_path / "environment", "--no-deps")
    (libraries,) = packages.folder.glob(".environment/lib/python3.*/site-packages")
    # What else it needs is what the wheel needs; only the build is another.
    environment = os.environ | {"PYTHONPATH": str(libraries)}

    assert __version__ in run([python.parent / "qemu-block-exporter", "--version"], env=environment)


@pytest.mark.parametrize(
    "python", [sys.executable, *other_pythons()], ids=lambda path: run([path, "--version"]).strip()
)
def test_the_wheel_runs_on_every_python_that_is_here(
    packages: Packages, tmp_path: Path, python: str
) -> None:
    """Warnings of a newer Python are errors: what it calls deprecated is gone in the next."""
    inside = install(python, packages.wheel, tmp_path / "environment")
    program = inside.parent / "qemu-block-exporter"

    once = run(
        [inside, "-W", "error", program, "once", "--qmp.sockets=/nonexistent/*.sock"], cwd="/"
    )
    assert f'qemu_exporter_build_info{{version="{__version__}"' in once
    assert "usage: qemu-block-exporter vms" in run(
        [inside, "-W", "error", program, "vms", "--help"]
    )


# What it is made of.


def test_the_sbom_is_cyclonedx_and_has_every_library_of_the_environment(packages: Packages) -> None:
    """With the versions that were installed; CycloneDX's own library finds nothing wrong."""
    text = packages.sbom.read_text()
    bom = json.loads(text)
    script = "import importlib.metadata as m; [print(d.name, d.version) for d in m.distributions()]"
    installed = dict(line.split(" ") for line in run([packages.python, "-c", script]).splitlines())
    named = {part["name"]: part["version"] for part in bom["components"]}

    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    assert named.items() <= installed.items()
    assert installed.keys() - named.keys() == {"qemu-block-exporter"}
    assert {"aiohttp", "qemu.qmp", "isal"} <= named.keys()
    assert bom["metadata"]["component"]["name"] == "qemu-block-exporter"
    assert all(part.get("licenses") for part in bom["components"])
    assert "file:" not in text


# The Debian package.


def test_the_debian_package_has_its_parts(packages: Packages) -> None:
    """Where a Debian host looks for them."""
    listed = run(["dpkg-deb", "-c", packages.deb]).splitlines()
    names = {line.split()[5].removeprefix(".") for line in listed}
    fields = Parser().parsestr(run(["dpkg-deb", "-f", packages.deb]))

    assert names >= {
        "/usr/bin/qemu-block-exporter",
        "/usr/lib/systemd/system/qemu-block-exporter.service",
        "/usr/lib/systemd/system/qemu-block-exporter.socket",
        "/usr/lib/systemd/user/qemu-block-exporter.service",
        "/usr/lib/sysusers.d/qemu-block-exporter.conf",
        "/usr/lib/tmpfiles.d/qemu-block-exporter.conf",
        "/etc/default/qemu-block-exporter",
        "/usr/share/man/man1/qemu-block-exporter.1.gz",
        "/usr/share/bash-completion/completions/qemu-block-exporter",
        "/usr/share/zsh/vendor-completions/_qemu-block-exporter",
        "/usr/share/fish/vendor_completions.d/qemu-block-exporter.fish",
        "/usr/share/doc/qemu-block-exporter/copyright",
        "/usr/share/doc/qemu-block-exporter/examples/snapshots.conf",
        *(f"/usr/share/doc/qemu-block-exporter/examples/recipes/{path.parent.name}/{path.name}"
          for path in (ROOT / "deploy" / "recipes").glob("*/*")),
    }  # fmt: skip
    assert {line.split()[1] for line in listed} == {"root/root"}
    assert {line.split()[0] for line in listed if line.startswith("d")} == {"drwxr-xr-x"}
    assert (fields["Package"], fields["Version"]) == ("qemu-block-exporter", f"{__version__}-1")
    assert (
        run(["dpkg-deb", "--info", packages.deb, "conffiles"])
        == "/etc/default/qemu-block-exporter\n"
    )
    assert fields["Architecture"] == {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]


def test_the_package_is_the_only_one_of_its_folder(packages: Packages, tmp_path: Path) -> None:
    """The pattern of the README names it to apt, also where an older version was built before."""
    for path in (packages.wheel, tmp_path / "qemu-block-exporter_0.0.1-1_amd64.deb"):
        shutil.copy(packages.wheel, tmp_path / path.name)
    build("deploy/debian/build", tmp_path)

    (built,) = tmp_path.glob("qemu-block-exporter_*.deb")
    assert filecmp.cmp(built, packages.deb, shallow=False), "two builds differ"


def test_lintian_finds_nothing_in_the_debian_package(packages: Packages) -> None:
    """Neither errors nor warnings; what is overridden has its reason beside it."""
    found = subprocess.run(
        ["lintian", "--fail-on", "error,warning", str(packages.deb)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert found.returncode == 0, found.stdout
    assert not found.stdout


def test_the_libraries_of_the_debian_package_have_their_licences_in_it(
    packages: Packages, tmp_path: Path
) -> None:
    """As the authors want it, and no full text of a licence that Debian has anyway."""
    run(["dpkg-deb", "-x", packages.deb, tmp_path])
    text = (tmp_path / "usr/share/doc/qemu-block-exporter/copyright").read_text()
    vendored = {
        path.name.split("-")[0]
        for path in (tmp_path / "usr/lib/qemu-block-exporter").glob("*.dist-info")
    }

    for name in vendored - {"qemu_block_exporter"}:
        assert f"\n{name.lower()} " in text.lower().replace("-", "_").replace(
            "qemu.qmp", "qemu_qmp"
        ), name
    assert "/usr/share/common-licenses/LGPL-2" in text
