"""Rooms and their faces: what the contracts of import-linter in pyproject.toml cannot say."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent / "exporter"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in ROOT.rglob("*.py")
    if path.name not in {"__init__.py", "__main__.py"}
}
ROOMS = {path.parent.name for path in ROOT.glob("*/__init__.py")}
TOP = {path.name for path in ROOT.iterdir() if not path.name.startswith("_")}
#: Loaded only by the part of the program that runs them, and so by no face.
LAZY = {"ctl": {"main"}, "demo": {"main"}}
#: What can change a VM, and the rooms that may name it.
WRITES = {"commands", "Command", "WRITE_COMMANDS"}
WRITERS = {"admin", "qmp", "collect"}
#: Libraries that are in one module of their room.
DOORS = {
    "qemu": {"qmp.library"},
    "ssl": {
        "ctl.client", "ctl.credentials", "web.connections", "web.watched_config", "web.server",
        "web.tls",
    },
    "ctypes": {"storage.file_stat", "demo.vms"},
}


def imported(path: Path) -> dict[str, set[str]]:
    """Return module -> names that a file imports from it."""
    found: dict[str, set[str]] = {}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name: set() for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.setdefault(node.module, set()).update(alias.name for alias in node.names)
    return found


def face(room: str) -> set[str]:
    """Return what the face of a room offers."""
    for node in ast.parse((ROOT / room / "__init__.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    return set()


FACES = {room: face(room) for room in ROOMS}


def test_the_top_of_the_house_is_seen_at_a_glance() -> None:
    """Few entries, and each of them is in the picture of CONTRIBUTING.md."""
    picture = (ROOT.parent / "CONTRIBUTING.md").read_text()
    names = {name.removesuffix(".py") for name in TOP}

    assert len(TOP) <= 20
    assert names <= set(re.findall(r"\w+", picture.partition("## How the program is built")[2]))


@pytest.mark.parametrize("module", MODULES)
def test_others_import_a_room_and_never_a_module_inside(module: str) -> None:
    """And nothing that its face does not offer."""
    mine = module.partition(".")[0]
    wrong = []
    for name, names in imported(MODULES[module]).items():
        _, _, room = name.partition("exporter.")
        if name == "exporter" or not room or room.partition(".")[0] == mine:
            continue
        offered = FACES[room] | LAZY.get(room, set()) if room in ROOMS else names
        if "." in room or not names <= offered:
            wrong.append(f"{name}: {sorted(names)}")

    assert wrong == []


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_a_face_offers_only_what_somebody_outside_uses(room: str) -> None:
    """What nobody uses is inside."""
    outside = [path for path in ROOT.rglob("*.py") if path.parent.name != room]
    outside += [p for part in ("tests", "bench") for p in (ROOT.parent / part).rglob("*.py")]
    used: set[str] = set()
    for path in outside:
        names = imported(path)
        used |= names.get(f"exporter.{room}", set())
        if room in names.get("exporter", ()):
            used |= set(re.findall(rf"\b{room}\.(\w+)", path.read_text()))

    assert FACES[room] - used == set()


@pytest.mark.parametrize("library", DOORS)
def test_a_library_has_one_door(library: str) -> None:
    """What comes from outside is translated once."""
    users = {
        module
        for module, path in MODULES.items()
        if any(name.split(".")[0] == library for name in imported(path))
    }

    assert users <= DOORS[library]


@pytest.mark.parametrize("module", MODULES)
def test_what_can_change_a_vm_is_named_in_few_rooms(module: str) -> None:
    """A page that reads has no way to it; a VM only passes on what admin hands it."""
    names = imported(MODULES[module]).get("exporter.qmp", set()) & WRITES

    assert not names or module.partition(".")[0] in WRITERS
    assert "commands" not in names or module.startswith("admin.")


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_never_above_400_lines(module: str) -> None:
    """What grows beyond is two things."""
    assert len(MODULES[module].read_text().splitlines()) <= 400
