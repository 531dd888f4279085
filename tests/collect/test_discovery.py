"""Where the sockets are, and what each VM is called."""

from __future__ import annotations

import logging
import os
import re
import resource
from pathlib import Path

import pytest

from exporter.collect.discovery import Discovery, printable
from exporter.config.settings import Config, Group, Settings, Target


def group(*globs: object, name: str = "g", pattern: str = "", **named: str) -> Group:
    """A group of globs, or of targets named in the config."""
    return Group(
        name=name,
        settings=Settings(),
        sockets=tuple(map(str, globs)),
        targets=tuple(Target(vm=vm, socket=socket) for vm, socket in named.items()),
        pattern=re.compile(pattern) if pattern else None,
    )


def find(*groups: Group) -> Discovery:
    """Look once."""
    discovery = Discovery(Config(groups=groups))
    discovery.refresh()
    return discovery


def found(discovery: Discovery) -> dict[str, str]:
    """Each name with the socket's path."""
    return {vm: target.socket for vm, target in discovery.targets.items()}


def test_a_vm_is_called_by_the_stem_of_its_socket(tmp_path: Path) -> None:
    """Only the last suffix goes."""
    for name in ("web.sock", "db.qmp.sock", "plain"):
        (tmp_path / name).touch()
    discovery = find(group(tmp_path / "*"))

    assert sorted(discovery.targets) == ["db.qmp", "plain", "web"]
    assert {target.group for target in discovery.targets.values()} == {"g"}


def test_a_pattern_names_the_vm_and_leaves_out_what_it_does_not_match(tmp_path: Path) -> None:
    """Libvirt's folders have a number in front of the name."""
    for name in ("domain-7-web", "domain-12-db", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "qmp.sock").touch()
    discovery = find(group(tmp_path / "*/qmp.sock", pattern=r"/domain-\d+-(?P<vm>[^/]+)/"))

    assert sorted(discovery.targets) == ["db", "web"]


def test_a_pattern_that_names_nothing_leaves_the_socket_out(tmp_path: Path) -> None:
    """A VM needs a name."""
    (tmp_path / "a.sock").touch()

    assert not find(group(tmp_path / "*", pattern=r"(?P<vm>x?)")).targets
    assert not find(group(tmp_path / "*", pattern=r"(a|(?P<vm>x))\.sock")).targets


def test_bytes_that_are_not_utf8_stand_as_percent_codes(tmp_path: Path) -> None:
    """In the name; the socket's path is what it was."""
    path = os.fsencode(tmp_path) + b"/w\xff\xc3\xa9\xc3.sock"
    Path(os.fsdecode(path)).touch()
    [target] = find(group(tmp_path / "*")).targets.values()

    assert target.vm == "w%FFé%C3"
    assert os.fsencode(target.socket) == path
    assert printable(os.fsdecode(b"/a\xff/b")) == "/a%FF/b"


def test_hidden_files_are_no_sockets(tmp_path: Path) -> None:
    """As in every shell."""
    (tmp_path / ".hidden").touch()

    assert not find(group(tmp_path / "*")).targets


def test_a_link_that_leads_nowhere_is_still_a_target(tmp_path: Path) -> None:
    """It will be down; to leave it out would hide it."""
    (tmp_path / "a.sock").symlink_to(tmp_path / "gone")
    assert sorted(find(group(tmp_path / "*")).targets) == ["a"]


def test_of_two_sockets_of_one_name_the_first_in_path_order_keeps_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The other one is left out, counted, and logged once."""
    for folder in ("b", "a"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "vm.sock").touch()
    discovery = find(group(tmp_path / "b/*"), group(tmp_path / "a/*"))
    discovery.refresh()

    assert found(discovery) == {"vm": str(tmp_path / "a/vm.sock")}
    assert discovery.conflicts == (str(tmp_path / "b/vm.sock"),)
    [record] = caplog.records
    assert (record.levelno, record.message) == (
        logging.WARNING,
        "socket left out: another one has its name",
    )
    assert record.__dict__["kept"] == str(tmp_path / "a/vm.sock")


def test_of_two_sockets_of_one_name_the_one_known_first_keeps_it(tmp_path: Path) -> None:
    """A newcomer must not take over the series of a VM that runs."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    (tmp_path / "b/vm.sock").touch()
    discovery = find(group(tmp_path / "*/*.sock"))
    (tmp_path / "a/vm.sock").touch()
    discovery.refresh()
    assert found(discovery) == {"vm": str(tmp_path / "b/vm.sock")}
    assert list(discovery.conflicts) == [str(tmp_path / "a/vm.sock")]
    (tmp_path / "b/vm.sock").unlink()
    discovery.refresh()

    assert found(discovery) == {"vm": str(tmp_path / "a/vm.sock")}
    assert list(discovery.conflicts) == []


def test_a_conflict_that_ends_and_comes_again_is_logged_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is news each time it begins."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "vm.sock").touch()
    discovery = find(group(tmp_path / "*/*.sock"))
    (tmp_path / "b/vm.sock").unlink()
    discovery.refresh()
    (tmp_path / "b/vm.sock").touch()
    discovery.refresh()

    assert len(caplog.records) == 2


def test_a_globbed_socket_that_is_gone_is_no_target_any_more(tmp_path: Path) -> None:
    """And is one again when it comes back."""
    (tmp_path / "a.sock").touch()
    (tmp_path / "b.sock").touch()
    discovery = find(group(tmp_path / "*.sock"))
    (tmp_path / "a.sock").unlink()
    discovery.refresh()
    assert sorted(discovery.targets) == ["b"]
    (tmp_path / "a.sock").touch()
    discovery.refresh()

    assert sorted(discovery.targets) == ["a", "b"]


def test_a_folder_that_cannot_be_listed_is_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A glob finds nothing there and says nothing; root, who may run this test, may list all."""
    globs = group(tmp_path / "*.sock", tmp_path / "x*"), group(tmp_path / "gone" / "*")
    with monkeypatch.context() as patch:
        patch.setattr("os.access", lambda path, mode: False)
        discovery = find(*globs)
        discovery.refresh()

    assert [record.message for record in caplog.records] == ["folder cannot be listed"]
    assert caplog.records[0].__dict__["folder"] == str(tmp_path)


def test_no_target_is_lost_while_its_folder_cannot_be_listed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Out of descriptors, a glob finds nothing: that says nothing of the VMs."""
    for name in ("a.sock", "b.sock", "c"):
        (tmp_path / name).touch()
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "d.sock").touch()
    discovery = find(group(tmp_path / "*.sock"), group(tmp_path / "x" / "*", name="x"))
    before = discovery.targets
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        discovery.refresh()
        discovery.refresh()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(before) == 3
    assert discovery.targets == before
    assert [record.__dict__["err"] for record in caplog.records] == ["Too many open files"] * 2
    (tmp_path / "a.sock").unlink()
    discovery.refresh()

    assert sorted(discovery.targets) == ["b", "d"]


def test_a_target_of_the_config_stays_while_its_socket_is_gone(tmp_path: Path) -> None:
    """It is down, not forgotten."""
    discovery = find(group(web=str(tmp_path / "gone.sock")))
    discovery.refresh()

    assert found(discovery) == {"web": str(tmp_path / "gone.sock")}


def test_a_socket_that_is_named_and_globbed_is_one_target(tmp_path: Path) -> None:
    """With the name that it was given, wherever the glob stands: it keeps it without a socket."""
    (tmp_path / "a.sock").touch()
    named = group(name="named", web=str(tmp_path / "a.sock"))
    globbed = group(tmp_path / "*.sock", name="globbed")

    assert {vm: t.group for vm, t in find(named, globbed).targets.items()} == {"web": "named"}
    assert {vm: t.group for vm, t in find(globbed, named).targets.items()} == {"web": "named"}


def test_a_socket_that_stays_is_the_same_target(tmp_path: Path) -> None:
    """Nothing is made of it anew, until the configuration is read again."""
    (tmp_path / "a.sock").touch()
    discovery = find(group(tmp_path / "*.sock"))
    first = discovery.targets["a"]
    (tmp_path / "b.sock").touch()
    discovery.refresh()
    second = discovery.targets["a"]
    discovery.config = Config(groups=(group(tmp_path / "*.sock", name="new"),))
    discovery.refresh()

    assert second is first
    assert (discovery.targets["a"].group, sorted(discovery.targets)) == ("new", ["a", "b"])


def test_another_configuration_counts_from_the_next_look(tmp_path: Path) -> None:
    """A reload needs no restart."""
    (tmp_path / "a.sock").touch()
    (tmp_path / "b.sock").touch()
    discovery = find(group(tmp_path / "a.*"))
    discovery.config = Config(groups=(group(tmp_path / "b.*", name="new"),))
    assert sorted(discovery.targets) == ["a"]
    discovery.refresh()

    assert {vm: t.group for vm, t in discovery.targets.items()} == {"b": "new"}
