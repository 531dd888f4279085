"""Settings: what the file may say, what it may not, and which of two words counts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from msgspec.structs import asdict

from exporter.config.settings import (
    DEFAULT_SOCKETS,
    Admin,
    ExpectedDepth,
    Grant,
    LatencyHistograms,
    Settings,
    Target,
    check_glob,
    describe,
    load,
)
from exporter.errors import ConfigError
from exporter.metrics.table import COLLECTORS
from tests.messages import tells

DATA = Path(__file__).parent.parent / "data/config"
WRONG = sorted((DATA / "wrong").iterdir())


def refusal(path: object, settings: Settings | None = None, *sockets: str) -> str:
    """Load a file that is wrong, and return what is said of it."""
    with pytest.raises(ConfigError) as caught:
        load(str(path), settings or Settings(), sockets)
    return str(caught.value)


def written(tmp_path: Path, text: str | bytes) -> str:
    """Write a file and return its path."""
    path = tmp_path / "config.yml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


@pytest.mark.parametrize("path", WRONG, ids=lambda path: path.stem)
def test_each_mistake_has_one_message_that_names_the_place(path: Path) -> None:
    """The file's first line has its setting and value: one file for each mistake."""
    expected = path.read_text().partition("\n")[0].removeprefix("# FILE")
    message = refusal(path)

    assert tells(message, f"{path}{expected}"), message
    assert len(expected) > 10


def test_a_file_can_say_everything_per_group() -> None:
    """What is said for a group beats what is said for all."""
    libvirt, web, db = load(str(DATA / "good.yml"), Settings(), ()).groups

    assert (libvirt.name, web.name, db.name) == ("libvirt", "group 1", "group 2")
    assert libvirt.sockets == ("/run/qemu/*/qmp.sock",)
    assert libvirt.pattern is not None
    assert libvirt.pattern.search("/run/qemu/domain-7-db/qmp.sock")
    assert libvirt.settings == Settings(
        timeout_seconds=3.0,
        connection="persistent",
        without=frozenset({"bitmaps"}),
        nodes=True,
        topology="always",
        topology_max_age_seconds=120.5,
        expected_backing_depth=(ExpectedDepth("virtio-disk?", 2), ExpectedDepth("*", 1)),
        latency_histograms=LatencyHistograms(boundaries_seconds=(0.001, 0.01)),
    )
    assert db.settings.latency_histograms == LatencyHistograms(
        boundaries_seconds=(1.0,), allow_managed=True
    )
    assert web.targets == (Target(vm="web", socket="/run/web.sock"),)
    assert web.settings == Settings(
        timeout_seconds=1.0,
        connection="per-scrape",
        without=frozenset({"latency"}),
        nodes=True,
        topology="always",
        topology_max_age_seconds=120.5,
    )


def test_what_the_file_says_beats_the_flags(tmp_path: Path) -> None:
    """And what it does not say is as the flags have it."""
    flags = Settings(timeout_seconds=9.0, topology="never", without=frozenset({"io", "jobs"}))
    path = written(tmp_path, "timeout_seconds: 2\ncollectors: {io: true}\n")
    [group] = load(path, flags, ()).groups

    assert group.settings == Settings(
        timeout_seconds=2.0, topology="never", without=frozenset({"jobs"})
    )


def test_collectors_are_turned_off_and_on(tmp_path: Path) -> None:
    """Each by its name; `nodes` is off by default."""
    off = "".join(f"  {name}: false\n" for name in COLLECTORS)
    [group] = load(written(tmp_path, "collectors:\n  nodes: true\n" + off), Settings(), ()).groups

    assert group.settings.without == frozenset(COLLECTORS)
    assert group.settings.nodes


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "groups: []\n", "{}"])
def test_an_empty_file_is_the_default(tmp_path: Path, text: str) -> None:
    """The default folder of sockets."""
    [group] = load(written(tmp_path, text), Settings(), ()).groups

    assert (group.sockets, group.settings) == ((DEFAULT_SOCKETS,), Settings())
    assert load(None, Settings(), ()) == load(written(tmp_path, text), Settings(), ())


def test_sockets_of_the_flags_come_before_the_groups_of_the_file() -> None:
    """With the settings that the file has for all."""
    flags, libvirt, *_ = load(str(DATA / "good.yml"), Settings(), ("/a/*", "/b/*")).groups

    assert (flags.sockets, flags.settings.topology) == (("/a/*", "/b/*"), "always")
    assert libvirt.name == "libvirt"


def test_a_place_is_that_of_the_file_whatever_the_flags_say() -> None:
    """Groups are counted as they stand there."""
    path = DATA / "wrong/group-of-nothing.yml"

    assert refusal(path, None, "/a/*") == f"{path}: groups[1] has neither sockets nor targets"


def test_the_first_rule_that_matches_a_device_counts() -> None:
    """Shell patterns, in their order."""
    rules = (ExpectedDepth("disk[0-3]", 2), ExpectedDepth("disk*", 1))
    settings = Settings(expected_backing_depth=rules)

    assert [settings.expected_depth(d) for d in ("disk0", "disk9", "DISK0", "vda")] == [2, 1, 0, 0]


def test_nothing_is_granted_unless_the_file_says_so() -> None:
    """Neither by flags nor by an empty file."""
    assert load(None, Settings(), ()).admin == Admin(grants=())


def test_grants_are_as_they_are_written() -> None:
    """In their order; what is not said is not allowed."""
    assert load(str(DATA / "good.yml"), Settings(), ()).admin.grants == (
        Grant(
            users=("alice", "bob"),
            verbs=("commit", "complete", "snapshot"),
            vms=("web-*", "db[12]"),
            allow_managed=True,
            directories=("/images",),
            same_files=True,
        ),
        Grant(users=("carol",), verbs=("pause",), vms=("*",)),
    )


@pytest.mark.parametrize(
    ("user", "verb", "vm", "allowed"),
    [
        ("alice", "commit", "web-1", True),
        ("bob", "snapshot", "db2", True),
        ("bob", "snapshot", "db3", False),
        ("alice", "commit", "web", False),
        ("alice", "commit", "WEB-1", False),
        ("alice", "cancel", "web-1", False),
        ("Alice", "commit", "web-1", False),
        ("", "commit", "web-1", False),
        ("carol", "commit", "web-1", False),
    ],
)
def test_a_grant_permits_what_it_names(user: str, verb: Any, vm: str, allowed: bool) -> None:
    """A user, a verb and a VM; VMs by shell patterns."""
    grant = load(str(DATA / "good.yml"), Settings(), ()).admin.grants[0]

    assert grant.permits(user, verb, vm) is allowed


@pytest.mark.parametrize(
    "bounds",
    [[1e-9], [0.001, 1e6], [*range(1, 65)], [1e-9, 2e-9]],
    ids=["ns", "long", "64", "near"],
)
def test_boundaries_may_be_as_short_and_as_long_as_it_says(
    tmp_path: Path, bounds: list[float]
) -> None:
    """The other side of each limit is among the mistakes."""
    text = yaml.safe_dump({"latency_histograms": {"boundaries_seconds": bounds}})
    path = written(tmp_path, text)
    [group] = load(path, Settings(), ()).groups

    assert group.settings.latency_histograms is not None
    assert group.settings.latency_histograms.boundaries_seconds == tuple(map(float, bounds))


def test_the_configuration_is_described_as_yaml() -> None:
    """And what is described can be read again."""
    config = load(str(DATA / "good.yml"), Settings(), ())
    told = yaml.safe_load(describe(config))
    libvirt, web, _ = told["groups"]

    assert libvirt["name"] == "libvirt"
    assert libvirt["pattern"] == "/domain-[0-9]+-(?P<vm>[^/]+)/"
    assert libvirt["settings"] == {
        **asdict(config.groups[0].settings),
        "without": ["bitmaps"],
        "expected_backing_depth": [
            {"device": "virtio-disk?", "depth": 2},
            {"device": "*", "depth": 1},
        ],
        "latency_histograms": {"boundaries_seconds": [0.001, 0.01], "allow_managed": False},
    }
    assert web["settings"]["latency_histograms"] is None
    assert web["targets"] == [{"vm": "web", "socket": "/run/web.sock"}]
    assert told["admin"]["grants"] == [
        {
            "users": ["alice", "bob"],
            "verbs": ["commit", "complete", "snapshot"],
            "vms": ["web-*", "db[12]"],
            "allow_managed": True,
            "unseen_neighbours": "refuse",
            "directories": ["/images"],
            "same_files": True,
        },
        {
            "users": ["carol"],
            "verbs": ["pause"],
            "vms": ["*"],
            "allow_managed": False,
            "unseen_neighbours": "refuse",
            "directories": [],
            "same_files": False,
        },
    ]


def test_a_glob_of_any_bytes_can_be_described() -> None:
    """A path need not be UTF-8."""
    config = load(None, Settings(), (os.fsdecode(b"/run/\xff*.sock"),))

    assert yaml.safe_load(describe(config).encode()) is not None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"\xff\xfe", ": not UTF-8 at byte 0"),
        (b"groups: caf\xe9", ": not UTF-8 at byte 11"),
        (b"timeout_seconds: " + b"9" * 400, ": Number out of range - at `$.timeout_seconds`"),
    ],
)
def test_a_file_of_odd_bytes_is_refused(tmp_path: Path, text: bytes, message: str) -> None:
    """Which byte is said."""
    path = written(tmp_path, text)

    assert refusal(path) == path + message


@pytest.mark.parametrize("text", ["a: \0", "a: \x07", "[" * 20_000, "{a: " * 5_000 + "}" * 5_000])
def test_a_file_that_no_editor_wrote_is_refused(tmp_path: Path, text: str) -> None:
    """Without a traceback; in which words is the library's."""
    path = written(tmp_path, text)

    assert refusal(path).startswith(f"{path}: ")
    assert "\n" not in refusal(path)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """It is gone, or it is none."""
    gone = tmp_path / "gone.yml"

    assert refusal(gone) == f"{gone}: No such file or directory"
    assert refusal(tmp_path) == f"{tmp_path}: Is a directory"
    assert refusal(__file__ + "/x") == f"{__file__}/x: Not a directory"


def test_a_file_that_may_not_be_read_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root, who may run this test, may read all."""

    def refuse(self: Path, encoding: str) -> str:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_text", refuse)
    assert refusal("/etc/x.yml") == "/etc/x.yml: Permission denied"


@pytest.mark.parametrize("glob", ["/run/*.sock", "/run/[ab].sock", "run/?.sock", "/run/a]b", "/x"])
def test_a_glob_that_can_match_is_taken(glob: str) -> None:
    """Whether it matches anything now or not."""
    check_glob(glob, "here")
