"""Settings, from the flags and the config file: immutable, with the defaults beside the fields.

Settings of a group of targets override the file's settings for all, which override the flags.
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

#: Most buckets of a histogram: each is a series per device and operation.
_BOUNDARIES_LIMIT = 64
_LONGEST_SECONDS = 1e6

Connection = Literal["persistent", "per-scrape"]
Topology = Literal["auto", "always", "never"]


class ExpectedDepth(Struct, frozen=True, forbid_unknown_fields=True):
    """Devices that are meant to have backing files, such as linked clones."""

    #: A shell pattern of `device` labels.
    device: str
    depth: int


class LatencyHistograms(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Latency histograms to set on devices that have none."""

    #: Upper bounds of all buckets but the last, which is unbounded.
    boundaries_seconds: tuple[float, ...]
    #: Whether they are set in a VM that is managed by libvirt, Proxmox VE or Incus.
    allow_managed: bool = False


class Grant(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which users may do what to which VMs. Without a grant, nothing may be changed."""

    #: Users of the web config file.
    users: tuple[str, ...]
    verbs: tuple[Verb, ...]
    #: Shell patterns of VM names.
    vms: tuple[str, ...]
    #: Whether VMs that are managed by libvirt, Proxmox VE or Incus may be changed behind its back.
    allow_managed: bool = False
    #: Whether a commit may start while another VM that may share its layers does not answer.
    unseen_neighbours: UnseenNeighbours = "refuse"
    #: Directories in which, and below which, files of snapshots may be created.
    directories: tuple[str, ...] = ()
    #: Whether paths mean the same files to these VMs as to the exporter. It cannot see this for
    #: itself if the VMs run as another user or behind a proxy.
    same_files: bool = False

    def permits(self, user: str, verb: str, vm: str) -> bool:
        """Whether `user` may do `verb` to `vm`."""
        return (
            user in self.users
            and verb in self.verbs
            and any(fnmatchcase(vm, pattern) for pattern in self.vms)
        )


class Admin(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the admin API allows, if it is enabled."""

    grants: tuple[Grant, ...] = ()


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one target is collected."""

    #: How long one VM may take to reply; its deadline begins in `collect.vm`.
    timeout_seconds: float = 5.0
    #: `persistent` for a socket that only the exporter uses, `per-scrape` for a shared one.
    connection: Connection = "persistent"
    #: Names of `metrics.COLLECTORS` that are off.
    without: frozenset[str] = frozenset()
    #: Whether nodes under no device are queried.
    nodes: bool = False
    #: When query-block is sent: `auto` only while the storage answers, or `always`, or `never`.
    topology: Topology = "auto"
    topology_max_age_seconds: float = 60.0
    #: The first rule that matches a device applies.
    expected_backing_depth: tuple[ExpectedDepth, ...] = ()
    latency_histograms: LatencyHistograms | None = None

    def expected_depth(self, device: str) -> int:
        """Return how many backing files `device` is expected to have."""
        for rule in self.expected_backing_depth:
            if fnmatchcase(device, rule.device):
                return rule.depth
        return 0


class Target(Struct, frozen=True, forbid_unknown_fields=True):
    """A VM named in the file: it remains a target while its socket is gone."""

    vm: str
    socket: str


class Group(Struct, frozen=True, kw_only=True):
    """Targets that share their settings."""

    name: str
    settings: Settings
    sockets: tuple[str, ...] = ()
    targets: tuple[Target, ...] = ()
    #: A regular expression for socket paths, with a group `vm`.
    pattern: re.Pattern[str] | None = None


class Config(Struct, frozen=True, kw_only=True):
    """Everything that can change while the program runs."""

    groups: tuple[Group, ...]
    admin: Admin = Admin()


class _Overrides(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the file may set for all targets or for a group."""

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
    """Return the configuration from the flags and the file at `path`, if any.

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
                raise ConfigError(
                    f"{place}: a target needs a vm name and a socket path,"
                    f" got vm {target.vm!r} and socket {target.socket!r}"
                )
    if sockets or not groups:
        wanted = sockets or (DEFAULT_SOCKETS,)
        groups.insert(0, Group(name="flags", settings=common, sockets=wanted))
    for number, grant in enumerate(file.admin.grants):
        _check_grant(grant, f"{where}: admin.grants[{number}]")
    return Config(groups=tuple(groups), admin=file.admin)


def check_glob(glob: str, where: str) -> None:
    """Refuse a glob that can never match a socket.

    Raises:
        ConfigError: the message gives the reason.
    """
    if not glob or glob.endswith("/"):
        raise ConfigError(f"{where}: must be the path or glob of a socket, got {glob!r}")
    if "\0" in glob:
        raise ConfigError(f"{where}: must not contain a NUL, got {glob!r}")
    if glob.count("[") > glob.count("]"):
        raise ConfigError(f"{where}: must close every '[', got {glob!r}")


def describe(config: Config) -> str:
    """Return the effective configuration as YAML. It contains no secrets."""
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
    """Refuse settings that have the right type but make no sense.

    Raises:
        ConfigError: names the setting.
    """
    for name in ("timeout_seconds", "topology_max_age_seconds"):
        value = getattr(settings, name)
        if not 0 < value < float("inf"):
            raise ConfigError(f"{where}: {name} must be a positive number, got {value}")
    for rule in settings.expected_backing_depth:
        if rule.depth < 0:
            raise ConfigError(
                f"{where}: expected_backing_depth of {rule.device!r} must be 0 or more,"
                f" got {rule.depth}"
            )
    if settings.latency_histograms is not None:
        _check_histograms(settings.latency_histograms, f"{where}: latency_histograms")


def _check_histograms(histograms: LatencyHistograms, where: str) -> None:
    if not 0 < len(histograms.boundaries_seconds) <= _BOUNDARIES_LIMIT:
        raise ConfigError(
            f"{where}: boundaries_seconds must have 1 to {_BOUNDARIES_LIMIT} numbers,"
            f" got {len(histograms.boundaries_seconds)}"
        )
    # QEMU requires whole nanoseconds in strictly ascending order.
    bounds = [
        round(b * NS) if 0 < b <= _LONGEST_SECONDS else 0 for b in histograms.boundaries_seconds
    ]
    if bounds[0] <= 0 or any(low >= high for low, high in pairwise(bounds)):
        raise ConfigError(
            f"{where}: boundaries_seconds must be in ascending order, above 0 and at most"
            f" {_LONGEST_SECONDS:g}"
        )


def _check_grant(grant: Grant, where: str) -> None:
    for name in ("users", "verbs", "vms"):
        values = getattr(grant, name)
        if not values or "" in values:
            raise ConfigError(f"{where}: {name} must not be empty or contain an empty string")
    for folder in grant.directories:
        if not folder.startswith("/") or "\0" in folder or ".." in folder.split("/"):
            raise ConfigError(f"{where}: directories must be absolute paths, got {folder!r}")
    if "snapshot" in grant.verbs and not grant.directories:
        raise ConfigError(f"{where}: directories must be set for the verb snapshot")


def _collectors(
    chosen: Mapping[str, bool], settings: Settings, where: str
) -> Iterator[tuple[str, object]]:
    if unknown := sorted(chosen.keys() - COLLECTORS.keys() - {"nodes"}):
        known = ", ".join((*COLLECTORS, "nodes"))
        raise ConfigError(f"{where}: collectors must be among {known}, got {unknown[0]!r}")
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
        raise ConfigError(
            f'{where}: must contain a group named "vm", for example (?P<vm>[^/]+), got {text!r}'
        )
    return pattern
