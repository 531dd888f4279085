"""A newcomer's way: a metric is a line and a job verb is a row, and the rest follows."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def examples(section: str) -> list[str]:
    """Return the blocks of code that a section of CONTRIBUTING.md shows, without their margin."""
    text = (ROOT / "CONTRIBUTING.md").read_text().partition(f"\n## {section}\n")[2]
    blocks = re.findall(r"(?:^    .*\n|^\n(?=    ))+", text.partition("\n## ")[0], re.MULTILINE)
    return [textwrap.dedent(block).strip("\n") + "\n" for block in blocks]


def copy(folder: Path) -> None:
    """Copy what the tests of this file need."""
    for part in ("exporter", "tests", "deploy", "pyproject.toml", "METRICS.md"):
        source = ROOT / part
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / part)


def add(file: Path, example: str, place: str, *, margin: str = "") -> None:
    """Add an example to a file where the "|" is in `place`, which is in it once."""
    before, after = place.split("|")
    text = file.read_text()
    assert text.count(before + after) == 1, f"{file} has not one {place!r}"
    added = before + textwrap.indent(example, margin) + after
    file.write_text(text.replace(before + after, added))


def test_the_line_of_the_example_is_all_that_a_new_metric_takes(tmp_path: Path) -> None:
    """In a copy: add the line, write the goldens anew, and all their tests pass again."""
    copy(tmp_path)
    line = examples("Add a metric")[0]
    add(tmp_path / "exporter/metrics/table.py", line, "\nNODES = (\n|", margin="    ")
    tests = ["tests/metrics/test_table.py", "tests/expose/test_golden.py"]

    assert _pytest(tmp_path, *tests).returncode == 1, "the goldens notice a new metric"
    assert _pytest(tmp_path, "--update-golden", *tests).returncode == 0
    assert _pytest(tmp_path, *tests).returncode == 0

    name = "qemu_block_node_lazy_refcounts"
    assert f"`{name}`" in (tmp_path / "METRICS.md").read_text()
    golden = (tmp_path / "tests" / "golden" / "10.0" / "a02-running.prom").read_text()
    assert re.search(rf'^{name}{{vm="vm",device="disk0",layer="0",.*}} 0$', golden, re.MULTILINE)


def test_a_request_a_command_and_a_row_are_all_that_a_new_job_verb_takes(tmp_path: Path) -> None:
    """In a copy: path, description, grant, audit trail and operators' command are there, and work."""
    copy(tmp_path)
    request, reason, command, row = examples("Add a job verb")
    exporter = tmp_path / "exporter"
    add(exporter / "api/verbs.py", f"{request}\n\n", "|class Dismiss(")
    commands = exporter / "qmp/commands.py"
    add(commands, reason, "\nWRITE_COMMANDS: Mapping[str, str] = {\n|", margin="    ")
    add(commands, f"{command}\n\n", "|def snapshot(")
    before_it = "|    JobVerb(\n        request=verbs.Dismiss,"
    add(exporter / "admin/job_verbs.py", row, before_it, margin="    ")

    ran = _pytest(
        tmp_path,
        "tests/project/verb_of_a_newcomer.py",
        "tests/admin/test_job_verbs.py",
        "tests/api/test_openapi.py",
        "tests/ctl/test_options.py",
    )
    assert ran.returncode == 0, ran.stdout
    pages = ["tests/cli/test_command_line.py"]
    assert _pytest(tmp_path, *pages).returncode == 1, "the man page notices a new command"
    assert _pytest(tmp_path, "--update-golden", *pages).returncode == 0
    manual = "".join(page.read_text() for page in (tmp_path / "deploy/man").iterdir())
    assert "converge" in manual


def _pytest(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
