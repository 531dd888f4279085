"""What the pages say is what the program does."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from types import ModuleType
from urllib.parse import parse_qs, urlsplit

import bcrypt
import pytest
import trustme
import yaml

from exporter.cli import serve_flags
from exporter.collect.discovery import _target
from exporter.config.settings import Settings, load
from exporter.ctl.commands import EXIT_CODES_HELP, OPERATING
from exporter.ctl.credentials import load as credentials
from exporter.ctl.options import parser
from exporter.errors import REASONS
from exporter.metrics.table import METRICS
from exporter.web.config import Tls, read
from tests.interface import interface
from tests.packages import Packages, run
from tests.pages import IN_TREE, PROGRAM, PROJECT, Page, commands, in_tree, ours
from tests.parsers import parse

ROOT = Path(__file__).parent.parent.parent
#: The pages of which every command, block of code and query is checked.
MANUAL = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
MARKDOWN = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("*.md", "docs/*.md", "deploy/**/*.md", "grafana/*.md", "bench/*.md")
    for path in ROOT.glob(pattern)
)
PAGES = [*MANUAL, "SECURITY.md", "CONTRIBUTING.md", "deploy/config.example.yml", "deploy/web.example.yml",
         *(f"deploy/recipes/{name}.md" for name in ("README", "incus", "libvirt", "proxmox", "qemu")),
         "deploy/systemd/README.md", "deploy/UPGRADING.md", "deploy/docker/README.md",
         "deploy/kubernetes/README.md"]  # fmt: skip


@pytest.mark.parametrize("page", PAGES)
def test_every_flag_that_a_page_names_exists(page: str) -> None:
    """A flag that was renamed is renamed everywhere."""
    known = set(serve_flags.parser()._option_string_actions) | {
        "--no-collector.NAME",
        "--update-golden",
    }
    known |= {"--http.config.file"}
    named = re.findall(r"(?<![\w-])--[a-z]+[.][a-z.-]*[a-z]", (ROOT / page).read_text())

    assert set(named) <= known
    assert (
        named
        or page in {*MANUAL, "CONTRIBUTING.md", "deploy/kubernetes/README.md"}
        or "/recipes/" in page
    )


def test_every_command_of_operators_is_explained() -> None:
    """With none but its own flags, and every exit code."""
    text = (ROOT / "docs" / "ctl.md").read_text()
    table = [row for row in text.splitlines() if row.startswith("| `")]
    named = {word for row in table for word in re.findall(r"[a-z]+", row.split(" | ")[0])}
    known = {flag for name in OPERATING for flag in parser(name)._option_string_actions}

    assert set(OPERATING) <= named
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z.-]*[a-z]", text)) <= known
    codes = re.findall(r"^\| (\d+)", text, re.MULTILINE)
    assert codes == re.findall(r"^  (\d+) ", EXIT_CODES_HELP, re.MULTILINE)


@pytest.mark.parametrize(
    "page",
    [*MANUAL, "CONTRIBUTING.md", *PAGES[-2:], *(page for page in PAGES if "/recipes/" in page)],
)
def test_every_metric_that_a_page_names_exists(page: str) -> None:
    """PromQL that is copied from a page gives something."""
    known = {metric.name for metric in METRICS} | {
        "qemu_block_exporter",
        "qemu_block_node_",
        "qemu_block_jobs_",
    }
    named = set(re.findall(r"\bqemu_[a-z_]+", (ROOT / page).read_text()))

    assert named <= known
    assert named or page.startswith("docs/")


def test_the_page_on_qemu_says_which_tests_run_on_every_version() -> None:
    """`make test-qemu` runs those in the table, and there are no others."""
    makefile = (ROOT / "Makefile").read_text()
    [listed] = re.findall(r"^QEMU_TESTS \?= ((?:.*\\\n)*.*)", makefile, re.MULTILINE)
    page = (ROOT / "docs" / "support.md").read_text()
    rows = re.findall(r"^\| `(test_\w+\.py)`", page, re.MULTILINE)

    assert sorted(rows) == sorted(f"test_{name}.py" for name in re.findall(r"\w+", listed))
    assert all((ROOT / "tests" / "e2e" / name).exists() for name in rows)


def test_every_reason_is_explained() -> None:
    """The page on troubleshooting has the reason of every VM that is down."""
    explained = re.findall(
        r"^\| `(\w+)` \|", (ROOT / "docs/troubleshooting.md").read_text(), re.MULTILINE
    )

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
def test_the_groups_of_a_recipe_name_the_vms_that_it_says(
    tmp_path: Path, page: str, found: dict[str, str]
) -> None:
    """Each socket once, by the group that it is for; one that another group has is left out."""
    text = (ROOT / "deploy" / "recipes" / f"{page}.md").read_text()
    sample = re.search(r"^    groups:\n(?:    .*\n?)+", text, re.MULTILINE)
    assert sample is not None
    (tmp_path / "config.yml").write_text(re.sub("^    ", "", sample[0], flags=re.MULTILINE))
    groups = load(str(tmp_path / "config.yml"), Settings(), ()).groups

    for socket, vm in found.items():
        (group,) = [
            group for group in groups if any(fnmatchcase(socket, glob) for glob in group.sockets)
        ]
        target = _target(group, socket, "")
        assert (target.vm if target else "") == vm


def test_the_example_of_a_web_configuration_is_one() -> None:
    """Every key of it, none left out."""
    path = ROOT / "deploy" / "web.example.yml"
    config = read(str(path))

    assert config.tls is not None
    assert config.headers
    assert config.users
    assert config.rate_limit
    assert config.tls.curve_preferences != ("X25519",), "Debian 12's Python does not take it"
    texts = {"cert", "key", "client_ca"}
    assert all(re.search(rf"^  {key}:", path.read_text(), re.MULTILINE)
               for key in {*Tls.__struct_fields__} - texts)  # fmt: skip


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


# Links.


@pytest.mark.parametrize("name", MARKDOWN)
def test_every_link_leads_somewhere(name: str) -> None:
    """To a file of the project and a heading in it, also by way of GitHub; or out of the project."""
    page = Page(name)
    for link in page.links():
        if (found := in_tree(link, page)) is None:
            assert link.startswith(("https://", "http://127.0.0.1:")), link
            continue
        target, anchor = found
        assert target.exists(), link
        assert not anchor or anchor in Page(str(target.resolve().relative_to(ROOT))).anchors(), link


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    """The test above can fail: by the file, and by the heading."""
    page = Page("docs/README.md")

    assert in_tree("gone.md", page) == (ROOT / "docs/gone.md", "")
    assert in_tree(f"{PROJECT}/blob/main/docs/tls.md#gone", page) == (ROOT / "docs/tls.md", "gone")
    assert "gone" not in Page("docs/tls.md").anchors()
    assert in_tree("https://example.org/docs", page) is None


def test_the_readme_can_be_read_anywhere() -> None:
    """A package index shows it without the files beside it."""
    assert {
        link
        for link in Page("README.md").links()
        if not link.startswith(("https://", "http://127.0.0.1:"))
    } == set()


def test_the_index_has_every_page() -> None:
    """A page that is added is added to the index."""
    page = Page("docs/README.md")
    linked = {found[0].resolve() for link in page.links() if (found := in_tree(link, page))}

    assert {ROOT / name for name in MANUAL} - linked == {ROOT / "docs/README.md"}


@pytest.mark.parametrize("name", [*MANUAL, "SECURITY.md", "CONTRIBUTING.md"])
def test_every_file_that_a_page_names_is_there(name: str) -> None:
    """A module that was moved is moved in the pages too."""
    named = re.findall(
        r"(?:^|\n)((?:exporter|tests|deploy|docs|bench|grafana)/[\w./-]+)(?=\n|$)",
        "\n".join(Page(name).code()),
    )

    assert {path for path in named if not (ROOT / path).exists()} == set()


# Commands, configurations and queries.

each_manual = pytest.mark.parametrize("name", MANUAL)


@each_manual
def test_every_block_of_code_says_its_language(name: str) -> None:
    """So that it is checked as such."""
    assert {block.language for block in Page(name).blocks()} <= {
        "sh",
        "console",
        "yaml",
        "promql",
        "text",
    }


@each_manual
def test_every_command_can_be_typed(name: str) -> None:
    """Of ours with flags that there are, of make with targets that there are; a shell takes all of them."""
    page = Page(name)
    for words in page.commands():
        mistake = wrong(words)
        assert not mistake, f"{words}: {mistake}"
    for block in page.blocks("sh"):
        run(["bash", "-n", "-c", block.text])


@pytest.mark.parametrize(("command", "mistake"), [
    ("qemu-block-exporter --qmp.timeot=3", "usage"),
    ("qemu-block-exporter commit web1 disk0 --wiat", "usage"),
    ("qemu-block-exporter comit web1 disk0", "usage"),
    ("docker run --read-only qemu-block-exporter --web.listen=0.0.0.0:9709", "usage"),
    ("make tset", "no such target"),
    ("curl localhost:9709/metric", "no such page"),
    ("api=http://127.0.0.1:9709/api/v1; curl $api/admin/vms/web1/block-job -d '{}'", "no such page"),
    ("curl http://127.0.0.1:9709/api/v1/vms -d '{}'", "no such page"),
    ("qemu-block-exprter vms", "not a program"),
])  # fmt: skip
def test_a_wrong_command_is_found(
    command: str, mistake: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The test above can fail."""
    found = [wrong(words) for words in commands(command)]

    assert found == [mistake]


#: Programs that the pages have people type, beside ours, make and curl.
OTHERS = {"apt", "docker", "htpasswd", "pip", "python3", "qemu-system-x86_64", "tr"}
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
INTERFACE = interface()


def wrong(words: list[str]) -> str:
    """Return what is wrong with a command; nothing if it can be typed."""
    program = words[0].rpartition("/")[2]
    if (arguments := ours(words)) is not None:
        try:
            parse(arguments)
        except SystemExit as end:
            return "usage" if end.code else ""
        return ""
    if program == "make":
        return (
            "" if {word for word in words[1:] if "=" not in word} <= TARGETS else "no such target"
        )
    if program == "curl":
        return "" if any(serves(word, words) for word in words[1:]) else "no such page"
    return "" if program in OTHERS else "not a program"


def serves(url: str, words: list[str]) -> bool:
    """Whether the exporter has the page of a URL; a body is JSON, and makes it a POST."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if "-d" in words:
        json.loads(words[words.index("-d") + 1])
    elif parts.path in INTERFACE["pages"]:
        return parse_qs(parts.query).keys() <= (
            {"target", "debug"} if parts.path == "/probe" else set()
        )
    method = "POST" if "-d" in words else "GET"
    known = (
        re.sub(r"\\{\w+\\}", "[^/]+", re.escape(operation)) for operation in INTERFACE["operations"]
    )
    return any(re.fullmatch(pattern, f"{method} {parts.path}") for pattern in known)


@each_manual
def test_every_flag_between_backquotes_exists(name: str) -> None:
    """As the flag of some command of ours."""
    known = {flag.split()[1] for flag in INTERFACE["flags"] if " --" in flag} | {"--help"}

    assert {
        code.split("=")[0].split()[0] for code in Page(name).code() if code.startswith("--")
    } <= known


def test_every_page_and_operation_of_the_exporter_is_explained() -> None:
    """Those that read, among the endpoints; those that change something, with the admin API."""
    prefix = "/api/v1/admin/vms/VM"
    endpoints = {path.partition("?")[0] for path in Page("docs/configuration.md").column("path")}
    changing = {
        f"{prefix}{path}" for path in Page("docs/admin-api.md").column(f"path below `{prefix}`")
    }
    operations: dict[str, set[str]] = {"GET": set(), "POST": set()}
    for operation in INTERFACE["operations"]:
        method, path = operation.split()
        for field, word in (("{vm}", "VM"), ("{job_id}", "ID"), ("{name}", "NAME")):
            path = path.replace(field, word)
        operations[method].add(path)

    assert {*INTERFACE["pages"], *operations["GET"]} <= endpoints
    assert operations["POST"] == changing


@each_manual
def test_every_configuration_is_one(name: str, tmp_path: Path) -> None:
    """Prometheus's and ours, as the programs that read them say."""
    for block in Page(name).blocks("yaml"):
        READERS[next(iter(yaml.safe_load(block.text)))](block.text, tmp_path)


def read_by_prometheus(text: str, folder: Path) -> None:
    """Have promtool read a configuration, whose files need not be there."""
    (folder / "prometheus.yml").write_text(text)
    run(["promtool", "check", "config", "--syntax-only", folder / "prometheus.yml"])


def read_as_rules(text: str, folder: Path) -> None:
    """Have promtool read rules."""
    (folder / "rules.yml").write_text(text)
    run(["promtool", "check", "rules", folder / "rules.yml"])


def read_as_web_configuration(text: str, folder: Path) -> None:
    """Read TLS and users; the files of a certificate are read later, when it serves."""
    (folder / "web.yml").write_text(text)
    assert read(str(folder / "web.yml")).users


def read_by_operators(text: str, folder: Path) -> None:
    """Read the credentials of the operators' commands, with the files that they name."""
    (folder / "http.yml").write_text(text)
    (folder / "secret").write_text("secret\n")
    trustme.CA().cert_pem.write_to_path(folder / "ca.pem")
    assert credentials(str(folder / "http.yml")).username


def read_with_users(text: str, folder: Path) -> None:
    """Start the exporter as far as --config.check goes, with the command of the page and the users of its grants."""
    users = {user for grant in yaml.safe_load(text)["admin"]["grants"] for user in grant["users"]}
    hashed = bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()
    (folder / "config.yml").write_text(text)
    (folder / "web.yml").write_text(
        yaml.safe_dump({"basic_auth_users": dict.fromkeys(users, hashed)})
    )
    (command,) = (words for words in Page("docs/admin-api.md").commands() if words[0] == PROGRAM)
    run([sys.executable, "-m", "exporter", *command[1:], "--config.check"], cwd=folder)


#: The first key of a file -> what reads it.
READERS: dict[str, Callable[[str, Path], None]] = {
    "scrape_configs": read_by_prometheus,
    "rule_files": read_by_prometheus,
    "groups": read_as_rules,
    "tls_server_config": read_as_web_configuration,
    "basic_auth": read_by_operators,
    "admin": read_with_users,
}


def test_a_wrong_configuration_is_found(tmp_path: Path) -> None:
    """By the program that reads it: the test above can fail."""
    page = Page("docs/admin-api.md")
    (block,) = page.blocks("yaml")

    with pytest.raises(AssertionError, match="verb"):
        read_with_users(block.text.replace("verbs:", "verb:"), tmp_path)
    with pytest.raises(AssertionError, match="scrape_intervall"):
        read_by_prometheus("scrape_configs: [{job_name: a, scrape_intervall: 5s}]", tmp_path)


def test_every_query_is_one(tmp_path: Path) -> None:
    """promtool takes those in the table of questions, and those in blocks of their own."""
    found = Page("docs/queries.md").column("PromQL")
    found += [block.text for name in MANUAL for block in Page(name).blocks("promql")]
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(found)]

    assert len(found) > 10
    read_as_rules(json.dumps({"groups": [{"name": "queries", "rules": rules}]}), tmp_path)
    with pytest.raises(AssertionError, match="parse error"):
        read_as_rules(
            json.dumps(
                {"groups": [{"name": "queries", "rules": [{"record": "a", "expr": "rate(a)["}]}]}
            ),
            tmp_path,
        )


# The README.


def test_the_readme_answers_what_a_visitor_asks_on_two_screens() -> None:
    """In this order, with the picture before everything else; and it stays short."""
    lines = (ROOT / "README.md").read_text().splitlines()
    headings = [line for line in lines[:100] if line.startswith("## ")]

    assert headings[:4] == ["## Install", "## First metric", "## First alert", "## Is it safe?"]
    assert any(line.startswith("![") for line in lines[: lines.index("## Install")])
    assert len(lines) <= 180


@pytest.mark.timeout(300)
def test_the_readme_installs_the_program(packages: Packages, tmp_path: Path) -> None:
    """Its three lines do, with a folder and a source of this test's own."""
    (block,) = (block for block in Page("README.md").blocks("sh") if "pip install" in block.text)
    script = block.text.replace("/opt/qemu-block-exporter", str(tmp_path / "environment"))
    script = script.replace(f"git+{PROJECT}", packages.sdist.as_uri()).rstrip()
    environment = os.environ | {"PIP_CONSTRAINT": str(ROOT / "constraints.txt")}

    assert packages.sdist.as_uri() in script
    assert (
        run(["sh", "-euc", f"{script} --version"], env=environment, cwd="/").count(
            f"{PROGRAM}, version"
        )
        == 1
    )
    assert len(script.splitlines()) == 3


def test_the_samples_in_the_readme_are_of_a_real_vm() -> None:
    """They are ten of a recording; only the VM has another name."""
    (block,) = Page("README.md").blocks("text")
    golden = (ROOT / "tests/golden/10.0/a09-commit-running.prom").read_text().splitlines()
    lines = block.text.replace('vm="web1"', 'vm="vm"').splitlines()

    assert len(lines) == 10
    assert set(lines) <= set(golden)


def test_the_figures_in_the_readme_are_measured() -> None:
    """`make bench` writes them into RESULTS.md; here and in docs/compared.md they are rounded to two digits."""
    results = (
        (ROOT / "bench" / "RESULTS.md").read_text().partition("## Exporters through libvirt")[2]
    )
    rows = re.findall(r"^\| ([\w-]+) \| ([\d.]+) \| [\d.]+ \| ([\d.]+) \|", results, re.MULTILINE)
    measured = {name: (float(wall), float(cpu) / 1000) for name, wall, cpu in rows}

    for page in ("README.md", "docs/compared.md"):
        text = (ROOT / page).read_text()
        for name in ("exporter", "prometheus-libvirt-exporter"):
            wall, cpu = measured[name]
            said = [float(number) for number in re.findall(r"\| ([\d.]+) ms\b", text)]
            assert any(two_digits(number) == two_digits(wall) for number in said), (
                page,
                name,
                wall,
            )
            assert any(two_digits(number) == two_digits(cpu) for number in said), (page, name, cpu)


def two_digits(number: float) -> float:
    """Round to two significant digits."""
    return float(f"{number:.2g}")


def test_the_readme_counts_alerts_and_dashboards() -> None:
    """As many as there are."""
    text = (ROOT / "README.md").read_text()
    alerts = (ROOT / "deploy/prometheus/alerts.yml").read_text().count("- alert: ")
    dashboards = len(list((ROOT / "grafana").glob("*.json")))

    assert f" {alerts} [alerts] " in text
    assert f" {dashboards} [Grafana dashboards]" in text


def test_the_badges_are_true() -> None:
    """They say what pyproject.toml and the page on support say."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pythons = [c.rpartition(" ")[2] for c in project["classifiers"] if "Python :: 3." in c]
    support = (ROOT / "docs" / "support.md").read_text()
    qemus = re.findall(r"\| (\d+\.\d+) \(Debian|newest \((\d+\.\d+)", support)
    badges = dict(re.findall(r"badge/(\w+)-(.+)-blue", (ROOT / "README.md").read_text()))

    assert badges["licence"].replace("--", "-") == project["license"]
    assert badges["Python"] == f"{pythons[0]}_to_{pythons[-1]}"
    assert badges["QEMU"] == f"{qemus[0][0]}_to_{qemus[-1][1]}"


def test_the_addresses_of_the_project_lead_somewhere() -> None:
    """A package index links them."""
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]

    assert {"Homepage", "Documentation", "Changelog", "Issues", "Source"} == urls.keys()
    for url in urls.values():
        assert url.startswith(PROJECT)
        if (found := in_tree(url, Page("README.md"))) is not None:
            assert found[0].exists(), url


# The picture.


@pytest.fixture
def picture() -> ModuleType:
    """The script that draws it."""
    spec = importlib.util.spec_from_file_location("picture", ROOT / "docs" / "picture.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_the_picture_shows_commands_that_there_are_and_loads_nothing() -> None:
    """It is an SVG that needs no font and no script from elsewhere."""
    (link,) = (
        link
        for link in Page("README.md").links()
        if link.startswith(IN_TREE) and link.endswith(".svg")
    )
    text = (ROOT / link.removeprefix(IN_TREE[-1])).read_text()
    typed = re.findall(rf"{PROGRAM}&#160;([^<]+)<", text)

    assert len(typed) == 2
    for arguments in typed:
        parse(arguments.replace("&#160;", " ").split())
    assert re.findall(r"https?://[^\"' ]+", text) == ["http://www.w3.org/2000/svg"]
    assert not re.search(r"<script|@import|@font-face", text)


def test_what_is_drawn_is_what_the_commands_print(picture: ModuleType) -> None:
    """Also where a table was drawn several times in one place, and with its colours."""
    watched = "\x1b[?25lVM  PROGRESS\r\nweb   1%\r\x1b[2K\x1b[1A\x1b[2KVM  PROGRESS\r\nweb  \x1b[36m43%\x1b[0m^C\x1b[?25h\r\n"
    drawn = picture.draw({("jobs", "--watch"): picture.last_frame(watched)})

    assert picture.last_frame(watched).splitlines() == ["VM  PROGRESS", "web  \x1b[36m43%\x1b[0m"]
    assert f"{PROGRAM}&#160;jobs&#160;--watch" in drawn
    assert "VM&#160;&#160;PROGRESS" in drawn
    assert "43%" in drawn
    assert "&#160;1%" not in drawn
