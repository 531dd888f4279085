"""A newcomer's way: a metric is one line in the table, and the rest follows."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def example() -> str:
    """Return the line that CONTRIBUTING.md shows."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    lines = re.findall(r"^    (_image\(.*\),)$", text, re.MULTILINE)
    assert len(lines) == 1
    return str(lines[0])


def test_the_line_of_the_example_is_all_that_a_new_metric_takes(tmp_path: Path) -> None:
    """In a copy: add the line, write the goldens anew, and all their tests pass again."""
    for part in ("exporter", "tests", "pyproject.toml", "METRICS.md"):
        source = ROOT / part
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, tmp_path / part)
    table = tmp_path / "exporter" / "metrics" / "table.py"
    before = table.read_text()
    table.write_text(before.replace("NODES = (\n", f"NODES = (\n    {example()}\n", 1))
    assert table.read_text() != before

    assert _pytest(tmp_path).returncode == 1, "the goldens notice a new metric"
    assert _pytest(tmp_path, "--update-golden").returncode == 0
    assert _pytest(tmp_path).returncode == 0

    name = "qemu_block_node_lazy_refcounts"
    assert f"`{name}`" in (tmp_path / "METRICS.md").read_text()
    golden = (tmp_path / "tests" / "golden" / "10.0" / "a02-running.prom").read_text()
    assert re.search(rf'^{name}{{vm="vm",device="disk0",layer="0",.*}} 0$', golden, re.MULTILINE)


def _pytest(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    tests = ["tests/metrics/test_table.py", "tests/expose/test_golden.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *flags, *tests]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
