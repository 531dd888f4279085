"""What the pages say is what the program does."""

from __future__ import annotations

import re
import subprocess
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from exporter.cli import serve_flags
from exporter.collect.discovery import _target
from exporter.config.settings import Settings, load
from exporter.ctl.commands import EXIT_CODES_HELP, OPERATING
from exporter.ctl.options import parser
from exporter.errors import REASONS
from exporter.metrics.table import METRICS
from exporter.web.config import Tls, read

ROOT = Path(__file__).parent.parent.parent
PAGES = ["README.md", "SECURITY.md", "CONTRIBUTING.md", "deploy/config.example.yml", "deploy/web.example.yml",
         *(f"deploy/recipes/{name}.md" for name in ("README", "incus", "libvirt", "proxmox", "qemu")),
         "deploy/systemd/README.md", "deploy/UPGRADING.md", "deploy/docker/README.md",
         "deploy/kubernetes/README.md"]  # fmt: skip


@pytest.mark.parametrize("page", PAGES)
def test_every_flag_that_a_page_names_exists(page: str) -> None:
    """A flag that was renamed is renamed everywhere."""
    known = set(serve_flags.parser()._option_string_actions) | {"--no-collector.NAME", "--update-golden"}
    known |= {"--http.config.file"}
    named = re.findall(r"(?<![\w-])--[a-z]+[.][a-z.-]*[a-z]", (ROOT / page).read_text())

    assert set(named) <= known
    assert named or page in {"CONTRIBUTING.md", "deploy/kubernetes/README.md"} or "/recipes/" in page


def test_every_command_of_operators_is_explained() -> None:
    """With no flag that it has not, and every exit code."""
    section = (ROOT / "README.md").read_text().partition("\n## From the shell\n")[2]
    section = section.partition("\n## ")[0]
    table = [row for row in section.splitlines() if row.startswith("| `")]
    named = {word for row in table for word in re.findall(r"[a-z]+", row.split(" | ")[0])}
    known = {flag for name in OPERATING for flag in parser(name)._option_string_actions}

    assert set(OPERATING) <= named
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z.-]*[a-z]", section)) <= known
    codes = re.findall(r"^\| (\d+)", section, re.MULTILINE)
    assert codes == re.findall(r"^  (\d+) ", EXIT_CODES_HELP, re.MULTILINE)


@pytest.mark.parametrize("page", [
    "README.md", "CONTRIBUTING.md", *PAGES[-2:], *(page for page in PAGES if "/recipes/" in page)])
def test_every_metric_that_a_page_names_exists(page: str) -> None:
    """PromQL that is copied from a page gives something."""
    known = {metric.name for metric in METRICS} | {"qemu_block_exporter", "qemu_block_node_"}
    named = set(re.findall(r"\bqemu_[a-z_]+", (ROOT / page).read_text()))

    assert named
    assert named <= known


def test_the_page_on_qemu_says_which_tests_run_on_every_version() -> None:
    """`make test-qemu` runs those in the table, and there are no others."""
    listed = re.search(r"^QEMU_TESTS \?= ((?:.*\\\n)*.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    page = (ROOT / "docs" / "support.md").read_text()
    rows = re.findall(r"^\| `(test_\w+\.py)`", page, re.MULTILINE)

    assert sorted(rows) == sorted(f"test_{name}.py" for name in re.findall(r"\w+", listed[1]))
    assert all((ROOT / "tests" / "e2e" / name).exists() for name in rows)


def test_every_reason_is_explained() -> None:
    """Whoever is woken by a VM that is down finds its reason in the README."""
    explained = re.findall(r"^\| `(\w+)` \|", (ROOT / "README.md").read_text(), re.MULTILINE)

    assert set(explained) >= set(REASONS)


def test_the_example_configuration_is_a_configuration() -> None:
    """Every key in it is known, and its groups are what their comments say."""
    config = load(str(ROOT / "deploy" / "config.example.yml"), Settings(), ())
    groups = {group.name: group for group in config.groups}

    assert groups["proxmox"].settings.connection == "per-scrape"
    assert groups["plain"].settings.connection == "persistent"
    assert groups["clones"].settings.expected_depth("virtio-disk0") == 1
    assert groups["by name"].targets[0].vm == "database"


@pytest.mark.parametrize(("page", "found"), [
    ("incus", {"/run/incus/web1/qemu-block-exporter.sock": "web1",
               "/run/incus/project_web1/qemu-block-exporter.sock": "project_web1"}),
    ("proxmox", {"/var/run/qemu-server/99.qmp": "99", "/var/run/qemu-server/1001.qmp": "1001",
                 "/var/run/qemu-server/100.qmp": "", "/var/run/qemu-server/101.qmp": "",
                 "/run/qemu-block-exporter/100.sock": "100"}),
])  # fmt: skip
def test_the_groups_of_a_recipe_name_the_vms_that_it_says(tmp_path: Path, page: str, found: dict[str, str]) -> None:
    """Each socket once, by the group that it is for; one that another group has is left out."""
    text = (ROOT / "deploy" / "recipes" / f"{page}.md").read_text()
    sample = re.search(r"^    groups:\n(?:    .*\n?)+", text, re.MULTILINE)
    assert sample is not None
    (tmp_path / "config.yml").write_text(re.sub("^    ", "", sample[0], flags=re.MULTILINE))
    groups = load(str(tmp_path / "config.yml"), Settings(), ()).groups

    for socket, vm in found.items():
        (group,) = [group for group in groups if any(fnmatchcase(socket, glob) for glob in group.sockets)]
        target = _target(group, socket, "")
        assert (target.vm if target else "") == vm


def test_the_example_of_a_web_configuration_is_one(tmp_path: Path) -> None:
    """Every key of it, none left out; and the one in the README."""
    path = ROOT / "deploy" / "web.example.yml"
    config = read(str(path))
    sample = re.search(r"\n    tls_server_config:\n(?:    .*\n)+", (ROOT / "README.md").read_text())

    assert config.tls is not None
    assert config.headers
    assert config.users
    assert config.rate_limit
    assert config.tls.curve_preferences != ("X25519",), "Debian 12's Python does not take it"
    texts = {"cert", "key", "client_ca"}
    assert all(re.search(rf"^  {key}:", path.read_text(), re.MULTILINE)
               for key in {*Tls.__struct_fields__} - texts)  # fmt: skip
    assert sample is not None
    (tmp_path / "web.yml").write_text(re.sub("^    ", "", sample[0].strip("\n"), flags=re.MULTILINE))
    assert list(read(str(tmp_path / "web.yml")).users) == ["prometheus"]


def test_what_the_example_for_prometheus_has_in_comments_is_a_configuration_too(
    tmp_path: Path,
) -> None:
    """Whoever takes the hashes out gets what is meant. Its files need not be there."""
    text = (ROOT / "deploy" / "prometheus" / "scrape.yml").read_text()
    path = tmp_path / "scrape.yml"
    path.write_text(re.sub(r"^  # (-|  )", r"  \1", text, flags=re.MULTILINE))
    check = subprocess.run(
        ["promtool", "check", "config", "--syntax-only", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert check.returncode == 0, check.stderr
    assert "\n  - job_name: qemu-block-tls\n    scheme: https\n" in path.read_text()


def test_the_example_for_prometheus_is_a_configuration_of_prometheus() -> None:
    """promtool takes it, relabelling and service discovery included."""
    path = ROOT / "deploy" / "prometheus" / "scrape.yml"
    check = subprocess.run(
        ["promtool", "check", "config", str(path)], capture_output=True, text=True, check=False
    )

    assert check.returncode == 0, check.stderr


#: Those that name Prometheus's flags.
OF_PROMETHEUS = ["deploy/prometheus/scale/README.md", "deploy/prometheus/scale/CAPACITY.md"]


@pytest.mark.parametrize("page", [*(page for page in PAGES if page.endswith(".md")), *OF_PROMETHEUS])
def test_every_link_between_pages_leads_somewhere(page: str) -> None:
    """A page that was moved is moved in the links too, and so is a section of it."""
    for link, section in re.findall(r"\]\(([^)#:]*)(?:#([^)]+))?\)", (ROOT / page).read_text()):
        target = (ROOT / page).parent / link if link else ROOT / page
        assert target.exists(), link
        assert not section or section in sections(target), f"{link}#{section}"


def sections(page: Path) -> set[str]:
    """Return the anchors of a page, as they are made from its headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
