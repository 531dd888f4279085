"""What the image is made of."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
DOCKER = ROOT / "deploy" / "docker"


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(path: Path) -> dict[str, str]:
    """Return the versions that a file names."""
    found = re.findall(r"^([\w.-]+)==([^\s;]+)", path.read_text(), re.MULTILINE)
    return {normal(name): version for name, version in found}


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-build.txt"])
def test_the_image_has_the_versions_that_the_project_is_tested_with(name: str) -> None:
    """`deploy/docker/lock` was run when constraints.txt changed; every file has its hash."""
    locked = pins(DOCKER / name)
    entries = re.split(r"\n(?=\S)", (DOCKER / name).read_text())

    assert locked
    assert locked.items() <= pins(ROOT / "constraints.txt").items()
    assert all("--hash=sha256:" in entry for entry in entries if "==" in entry)


def test_the_image_has_every_dependency() -> None:
    """Those of the program, and the faster gzip."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["speed"]]
    names = {normal(re.split(r"[^\w.-]", each)[0]) for each in wanted}

    assert names <= pins(DOCKER / "requirements.txt").keys()
