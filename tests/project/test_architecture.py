"""Arrows point down: who may import whom."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent / "exporter"

#: From the top down; a module imports only what stands below it.
ORDER = (
    "__main__", "cli", "serving", "options", "shell.main", "shell.views", "shell.actions",
    "shell.lookup", "shell.waiting", "shell.progress", "shell.screen", "shell.tables",
    "shell.client", "shell.credentials", "shell.options", "shell.words", "shell.rates",
    "shell.text", "shell.commands", "demo.main", "demo.vms", "demo.disks", "demo.simulation",
    "demo.simulated_vm", "demo.simulated_disks", "demo.lines", "demo.scenarios", "web.app",
    "web.admin", "web.reading", "web.openapi", "web.routes", "web.answers", "web.server",
    "web.auth", "web.passwords", "web.live", "web.tls", "web.config", "hand", "keeper", "actions",
    "commits", "neighbours", "done", "pivots", "turn", "apart", "snapshots", "overlay",
    "qcow2", "imagenames", "guards", "verbs", "effects", "audit", "view", "ledger", "durable", "grants", "scrape", "member", "vm", "exports", "refresh",
    "joblist", "inquiry", "corruption", "watch", "jobs", "known", "outcomes", "evidence", "verdict", "events", "joberrors", "topology", "imagefiles", "storage",
    "relays", "openfiles", "mounts", "sight", "qmp", "client", "lines", "pace", "peer", "connections", "sockdiag", "socketfile", "commands", "discovery", "config", "api", "problems",
    "yamlfile", "service", "garbage", "exposition", "families", "render", "samples", "template",
    "parse", "nodes", "graph", "model", "owners", "identity", "chain", "queries", "qapi", "metrics", "family",
    "filename", "errors", "flags",
)  # fmt: skip
#: No I/O: these can be fuzzed and measured alone.
PURE = {
    "api", "chain", "commands", "corruption", "effects", "events", "evidence", "families", "family", "filename", "grants",
    "graph", "guards", "identity", "imagenames", "joberrors", "jobs", "known", "metrics", "model", "nodes", "outcomes", "owners", "parse",
    "problems", "qapi", "qcow2", "queries", "render", "samples", "template", "verbs", "verdict", "view",
    "shell.rates", "shell.text", "shell.words", "web.routes",
}  # fmt: skip
#: Who alone may import a library.
DOORS = {
    "qemu": {"qmp", "client"},
    "aiohttp": {"web.admin", "web.answers", "web.reading", "web.app", "web.auth", "web.server", "demo.main",
                "shell.client"},
    "bcrypt": {"web.passwords"},
    "rich": {"shell.progress", "shell.screen", "shell.tables", "shell.views"},
    "prometheus_client": {"exposition"},
    "yaml": {"yamlfile"},
    "ssl": {"shell.client", "shell.credentials", "web.live", "web.server", "web.tls"},
    "ctypes": {"sight", "demo.vms"},
}

#: Who alone may import what can change a VM.
HANDS = {
    "commands": {"actions", "commits", "done", "effects", "guards", "keeper", "qmp", "turn", "verbs", "vm"},
    "actions": {"hand", "web.admin"},
    "commits": {"actions"},
    "turn": {"actions", "commits", "done", "keeper", "neighbours"},
}

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in ROOT.rglob("*.py")
    if path.name != "__init__.py"
}


def imports(path: Path) -> set[str]:
    """Return every module that a file imports, those of the package without its name."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_every_module_has_its_place() -> None:
    """A new module is put where it belongs, or this fails."""
    assert MODULES.keys() <= set(ORDER)


def test_every_module_is_explained_to_newcomers() -> None:
    """In CONTRIBUTING.md, the demo as a whole, and no module that there is not."""
    table = (ROOT.parent / "CONTRIBUTING.md").read_text().partition("| module | what it is |")[2]
    rows = table.partition("\n\n")[0].splitlines()[2:]
    named = {name for row in rows for name in re.findall(r"`([\w.]+)`", row.split(" | ")[0])}
    parts = {module.partition(".")[0] for module in MODULES if "." in module}

    assert {module for module in MODULES if not module.startswith("demo.")} <= named
    assert named <= MODULES.keys() | parts


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_stands_below_it(module: str) -> None:
    """Arrows point down."""
    ours = {name.removeprefix("exporter.") for name in imports(MODULES[module])}
    above = {name for name in ours & set(ORDER) if ORDER.index(name) <= ORDER.index(module)}

    assert not above


@pytest.mark.parametrize("module", sorted(PURE))
def test_a_pure_module_does_no_io(module: str) -> None:
    """Neither asyncio nor sockets, files, threads or clocks."""
    forbidden = {"asyncio", "socket", "os", "threading", "time", "pathlib", "logging", "subprocess"}

    assert not imports(MODULES[module]) & forbidden


@pytest.mark.parametrize("library", DOORS)
def test_a_library_has_one_door(library: str) -> None:
    """What comes from outside is translated once."""
    users = {m for m, path in MODULES.items() if any(n.split(".")[0] == library for n in imports(path))}

    assert users <= DOORS[library]


@pytest.mark.parametrize("module", HANDS)
def test_what_can_change_a_vm_is_in_few_hands(module: str) -> None:
    """A collector or a page that reads has no way to it."""
    users = {m for m, path in MODULES.items() if f"exporter.{module}" in imports(path)}

    assert users <= HANDS[module]


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_never_above_400_lines(module: str) -> None:
    """What grows beyond is two things."""
    assert len(MODULES[module].read_text().splitlines()) <= 400
