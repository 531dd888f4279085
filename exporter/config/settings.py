"""Settings: what the flags and the config file say, frozen, with the defaults beside the fields.

What is said for a group of targets beats what the file says for all, and that beats the flags.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import Any, Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

from exporter.api import UnseenNeighbours, Verb
from exporter.config import yaml_file
from exporter.errors import ConfigError
from exporter.metrics import COLLECTORS, NS

DEFAULT_SOCKETS = "/run/qemu-block-exporter/*.sock"
DEFAULT_PORT = 9709

#: Most buckets of a histogram: each is a series of each device and operation.
_BOUNDARIES_LIMIT = 64
_LONGEST_SECONDS = 1e6

Connection = Literal["persistent", "per-scrape"]
Topology = Literal["auto", "always", "never"]


class ExpectedDepth(Struct, frozen=True, forbid_unknown_fields=True):
    """Devices that have backing files by right, such as linked clones."""

    #: A shell pattern of `device` labels.
    device: str
    depth: int


class LatencyHistograms(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Histograms that QEMU is to keep of devices that have none."""

    #: Upper bounds of the buckets but the last, which has none.
    boundaries_seconds: tuple[float, ...]
    #: Whether they are set in a VM that libvirt, Proxmox VE or Incus runs.
    allow_managed: bool = False


class Grant(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who may do what to which VMs; without one nobody may do anything."""

    #: Users of the web config file.
    users: tuple[str, ...]
    verbs: tuple[Verb, ...]
    #: Shell patterns of VM names.
    vms: tuple[str, ...]
    #: Whether VMs that libvirt, Proxmox VE or Incus runs may be changed behind its back.
    allow_managed: bool = False
    #: Whether a commit may start while another VM that may share its layers does not answer.
    unseen_neighbours: UnseenNeighbours = "refuse"
    #: Where files of snapshots may be made, and below.
    directories: tuple[str, ...] = ()
    #: Whether these VMs have the same files under the same names as the exporter, which it cannot
    #: see for itself where they run as another user, or behind a proxy.
    same_files: bool = False

    def permits(self, user: str, verb: str, vm: str) -> bool:
        """Whether `user` may do `verb` to `vm`."""
        return (
            user in self.users
            and verb in self.verbs
            and any(fnmatchcase(vm, pattern) for pattern in self.vms)
        )


class Admin(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the admin API allows, where it is enabled."""

    grants: tuple[Grant, ...] = ()


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one target is collected."""

    #: Deadline of one VM's answers.
    timeout_seconds: float = 5.0
    #: `persistent` for a socket of the exporter's own, `per-scrape` for one that is shared.
    connection: Connection = "persistent"
    #: Names of `metrics.COLLECTORS` that are off.
    without: frozenset[str] = frozenset()
    #: Whether nodes under no device are asked for.
    nodes: bool = False
    #: When query-block is asked: `auto` only while the storage answers, or `always`, or `never`.
    topology: Topology = "auto"
    topology_max_age_seconds: float = 60.0
    #: The first rule that matches a device counts.
    expected_backing_depth: tuple[ExpectedDepth, ...] = ()
    latency_histograms: LatencyHistograms | None = None

    def expected_depth(self, device: str) -> int:
        """Return how many backing files `device` has by right."""
        for rule in self.expected_backing_depth:
            if fnmatchcase(device, rule.device):
                return rule.depth
        return 0


class Target(Struct, frozen=True, forbid_unknown_fields=True):
    """A VM named in the file: it stays a target while its socket is gone."""

    vm: str
    socket: str


class Group(Struct, frozen=True, kw_only=True):
    """Targets that are collected alike."""

    name: str
    settings: Settings
    sockets: tuple[str, ...] = ()
    targets: tuple[Target, ...] = ()
    #: A regular expression over socket paths with a group `vm`.
    pattern: re.Pattern[str] | None = None


class Config(Struct, frozen=True, kw_only=True):
    """Everything that can change while the program runs."""

    groups: tuple[Group, ...]
    admin: Admin = Admin()


class _Overrides(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the file may say for all targets or for a group."""

    timeout_seconds: float | UnsetType = UNSET
    connection: Connection | UnsetType = UNSET
    #: collector -> on or off; `nodes` too.
    collectors: dict[str, bool] | UnsetType = UNSET
    topology: Topology | UnsetType = UNSET
    topology_max_age_seconds: float | UnsetType = UNSET
    expected_backing_depth: tuple[ExpectedDepth, ...] | UnsetType = UNSET
    latency_histograms: LatencyHistograms | UnsetType | None = UNSET


class _FileGroup(_Overrides, frozen=True, kw_only=True):
    name: str = ""
    sockets: tuple[str, ...] = ()
    targets: tuple[Target, ...] = ()
    pattern: str = ""


class _File(_Overrides, frozen=True, kw_only=True):
    groups: tuple[_FileGroup, ...] = ()
    admin: Admin = Admin()


def load(path: str | None, flags: Settings, sockets: tuple[str, ...]) -> Config:
    """Return the configuration of the flags and of the file at `path`, if any.

    Raises:
        ConfigError: names the file, the place in it and what is wrong there.
    """
    file = yaml_file.read(path, _File) if path else _File()
    where = path or "flags"
    common = _apply(file, flags, where)
    groups = [
        Group(
            name=group.name or f"group {number}",
            settings=_apply(group, common, f"{where}: groups[{number}]"),
            sockets=group.sockets,
            targets=group.targets,
            pattern=_pattern(group.pattern, f"{where}: groups[{number}].pattern"),
        )
        for number, group in enumerate(file.groups)
    ]
    for number, group in enumerate(groups):
        place = f"{where}: groups[{number}]"
        if not group.sockets and not group.targets:
            raise ConfigError(f"{place} has neither sockets nor targets")
        for glob in group.sockets:
            check_glob(glob, place)
        for target in group.targets:
            if not target.vm or not target.socket or "\0" in target.socket:
                raise ConfigError(f"{place}: {target.vm!r} at {target.socket!r} is no target")
    if sockets or not groups:
        wanted = sockets or (DEFAULT_SOCKETS,)
        groups.insert(0, Group(name="flags", settings=common, sockets=wanted))
    for number, grant in enumerate(file.admin.grants):
        _check_grant(grant, f"{where}: admin.grants[{number}]")
    return Config(groups=tuple(groups), admin=file.admin)


def check_glob(glob: str, where: str) -> None:
    """Refuse a glob that can never match a socket.

    Raises:
        ConfigError: says why.
    """
    if not glob or glob.endswith("/"):
        raise ConfigError(f"{where}: {glob!r} names no socket")
    if "\0" in glob:
        raise ConfigError(f"{where}: {glob!r} has a NUL in it")
    if glob.count("[") > glob.count("]"):
        raise ConfigError(f"{where}: {glob!r} has a '[' that is not closed")


def describe(config: Config) -> str:
    """Return the effective configuration as YAML. It holds no secrets; file names are public."""
    plain = msgspec.to_builtins(
        config,
        enc_hook=lambda value: value.pattern if isinstance(value, re.Pattern) else str(value),
    )
    for group in plain["groups"]:
        group["settings"]["without"] = sorted(group["settings"]["without"])
    return yaml_file.text(plain)


def _apply(overrides: _Overrides, settings: Settings, where: str) -> Settings:
    changes: dict[str, Any] = {
        name: value
        for name in Settings.__struct_fields__
        if (value := getattr(overrides, name, UNSET)) is not UNSET
    }
    if overrides.collectors is not UNSET:
        changes |= dict(_collectors(overrides.collectors, settings, where))
    changed = msgspec.structs.replace(settings, **changes)
    check(changed, where)
    return changed


def check(settings: Settings, where: str) -> None:
    """Refuse settings that are of the right type and make no sense.

    Raises:
        ConfigError: names the setting.
    """
    for name in ("timeout_seconds", "topology_max_age_seconds"):
        value = getattr(settings, name)
        if not 0 < value < float("inf"):
            raise ConfigError(f"{where}: {name} must be a number above 0, not {value}")
    for rule in settings.expected_backing_depth:
        if rule.depth < 0:
            raise ConfigError(f"{where}: expected_backing_depth of {rule.device!r} is below 0")
    if settings.latency_histograms is not None:
        _check_histograms(settings.latency_histograms, f"{where}: latency_histograms")


def _check_histograms(histograms: LatencyHistograms, where: str) -> None:
    if not 0 < len(histograms.boundaries_seconds) <= _BOUNDARIES_LIMIT:
        raise ConfigError(f"{where}: boundaries_seconds takes 1 to {_BOUNDARIES_LIMIT} numbers")
    # QEMU takes whole nanoseconds, each above the one before.
    bounds = [
        round(b * NS) if 0 < b <= _LONGEST_SECONDS else 0 for b in histograms.boundaries_seconds
    ]
    if bounds[0] <= 0 or any(low >= high for low, high in pairwise(bounds)):
        raise ConfigError(
            f"{where}: boundaries_seconds must rise from above 0 to {_LONGEST_SECONDS:g} at most"
        )


def _check_grant(grant: Grant, where: str) -> None:
    for name in ("users", "verbs", "vms"):
        values = getattr(grant, name)
        if not values or "" in values:
            raise ConfigError(f"{where}: {name} names none, or an empty one")
    for folder in grant.directories:
        if not folder.startswith("/") or "\0" in folder or ".." in folder.split("/"):
            raise ConfigError(f"{where}: directories: {folder!r} is no absolute path")
    if "snapshot" in grant.verbs and not grant.directories:
        raise ConfigError(f"{where}: snapshot needs directories to make files in")


def _collectors(
    chosen: Mapping[str, bool], settings: Settings, where: str
) -> Iterator[tuple[str, object]]:
    if unknown := sorted(chosen.keys() - COLLECTORS.keys() - {"nodes"}):
        known = ", ".join((*COLLECTORS, "nodes"))
        raise ConfigError(f"{where}: no collector {unknown[0]!r}; there are {known}")
    off = {name for name, on in chosen.items() if not on and name != "nodes"}
    on = {name for name, on in chosen.items() if on}
    yield "without", (settings.without | off) - on
    yield "nodes", chosen.get("nodes", settings.nodes)


def _pattern(text: str, where: str) -> re.Pattern[str] | None:
    if not text:
        return None
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise ConfigError(f"{where}: {error}") from error
    if "vm" not in pattern.groupindex:
        raise ConfigError(f"{where}: has no group named vm, as in (?P<vm>[^/]+)")
    return pattern
