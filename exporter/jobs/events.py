"""Counts the events of one VM, by device; and the types that events are decoded into.

Pure, and bounded whatever a VM sends: labels are QEMU's own words and names of devices. The
counters of a device begin at 0 with the device, so that `increase` sees its first event.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec

from exporter.jobs.job_errors import NO_ERRORS, OTHER, JobErrors, words
from exporter.metrics import Scope
from exporter.model import DeviceEvents, IoErrors, Job, Owners, Subject, VmEvents

#: Every event in QAPI, of QEMU 2.0 to 11.1.
NAMES = frozenset(
    """
    ACPI_DEVICE_OST BALLOON_CHANGE BLOCK_EXPORT_DELETED BLOCK_IMAGE_CORRUPTED BLOCK_IO_ERROR
    BLOCK_JOB_CANCELLED BLOCK_JOB_COMPLETED BLOCK_JOB_ERROR BLOCK_JOB_PENDING BLOCK_JOB_READY
    BLOCK_WRITE_THRESHOLD COLO_EXIT CPU_POLARIZATION_CHANGE DEVICE_DELETED DEVICE_TRAY_MOVED
    DEVICE_UNPLUG_GUEST_ERROR DUMP_COMPLETED FAILOVER_NEGOTIATED GUEST_CRASHLOADED GUEST_PANICKED
    GUEST_PVSHUTDOWN HV_BALLOON_STATUS_REPORT JOB_STATUS_CHANGE MEMORY_DEVICE_SIZE_CHANGE
    MEMORY_FAILURE MEM_UNPLUG_ERROR MIGRATION MIGRATION_PASS NETDEV_STREAM_CONNECTED
    NETDEV_STREAM_DISCONNECTED NETDEV_VHOST_USER_CONNECTED NETDEV_VHOST_USER_DISCONNECTED
    NIC_RX_FILTER_CHANGED POWERDOWN PR_MANAGER_STATUS_CHANGED QUORUM_FAILURE QUORUM_REPORT_BAD
    RDMA_GID_STATUS_CHANGED RESET RESUME RTC_CHANGE SCLP_CPI_INFO_AVAILABLE SHUTDOWN
    SPICE_CONNECTED SPICE_DISCONNECTED SPICE_INITIALIZED SPICE_MIGRATE_COMPLETED STOP SUSPEND
    SUSPEND_DISK UNPLUG_PRIMARY
    VFIO_MIGRATION VFU_CLIENT_HANGUP VNC_CONNECTED VNC_DISCONNECTED VNC_INITIALIZED
    VSERPORT_CHANGE WAKEUP WATCHDOG
    """.split()  # noqa: SIM905  # easier to read than a page of quotes
)
#: Most devices of one VM with counters of their own.
_DEVICES_LIMIT = 4096
#: Most kinds of events of one VM that wait for the name of their device.
_WAITING_LIMIT = 1024

#: Longest id of a job: ids are kept in memory, and no id of QEMU's is longer.
ID_LIMIT = 1024
Id = Annotated[str, msgspec.Meta(max_length=ID_LIMIT)]


class _OfBlock(msgspec.Struct, rename="kebab"):
    """The members of block events that identify the device; QEMU sends those that it knows."""

    #: In BLOCK_IO_ERROR and BLOCK_IMAGE_CORRUPTED; empty for `-blockdev`.
    device: str = ""
    #: In BLOCK_IO_ERROR, since QEMU 10.0.
    qom_path: str = ""
    #: In all of them; in BLOCK_IO_ERROR the root node, which may be a job's filter.
    node_name: str = ""
    #: In BLOCK_IO_ERROR.
    operation: str = ""
    action: str = ""


class JobStatusChange(msgspec.Struct):
    """JOB_STATUS_CHANGE."""

    id: Id
    status: str


class BlockJobEvent(msgspec.Struct):
    """BLOCK_JOB_COMPLETED, BLOCK_JOB_CANCELLED, BLOCK_JOB_READY; `device` is the job's id."""

    device: Id
    type: Id
    error: str | None = None


class _OfJobError(msgspec.Struct):
    """BLOCK_JOB_ERROR; `device` is the job's id."""

    device: Id
    operation: str = ""
    action: str = ""


STATUS_CHANGE = msgspec.json.Decoder(JobStatusChange)
BLOCK_JOB = msgspec.json.Decoder(BlockJobEvent)
_BLOCK = msgspec.json.Decoder(_OfBlock)
_JOB_ERROR = msgspec.json.Decoder(_OfJobError)

_NOTHING = Subject()
#: Events counted by device, besides BLOCK_IO_ERROR. QUORUM_REPORT_BAD names the child's node.
_NAMED_BY_NODE = frozenset({"BLOCK_WRITE_THRESHOLD", "BLOCK_IMAGE_CORRUPTED", "QUORUM_REPORT_BAD"})
#: What is counted by device: an event's name, and the operation and action of a BLOCK_IO_ERROR.
_What = tuple[str, str, str]


@dataclass(slots=True)
class _Counts:
    """The event counters of one device."""

    #: (operation, action) -> number of BLOCK_IO_ERROR.
    io_errors: Counter[tuple[str, str]] = field(default_factory=Counter)
    thresholds: int = 0
    corrupted: int = 0
    quorum: int = 0

    def add(self, what: _What, count: int) -> None:
        event, operation, action = what
        if event == "BLOCK_IO_ERROR":
            self.io_errors[operation, action] += count
        elif event == "BLOCK_WRITE_THRESHOLD":
            self.thresholds += count
        elif event == "BLOCK_IMAGE_CORRUPTED":
            self.corrupted += count
        else:
            self.quorum += count

    @property
    def any(self) -> bool:
        """Whether anything was counted."""
        others = self.thresholds + self.corrupted + self.quorum
        return bool(others or self.io_errors)


class Events:
    """Counts the events of one VM.

    An event of an unknown device waits for replies to queries that were sent after it came (`ask`,
    `know`, `find`): they include a layer or filter that is new. If they do not name its device
    either, it is counted for device "".
    """

    def __init__(self) -> None:
        self._events: Counter[str] = Counter()
        #: By device.
        self._counts: dict[str, _Counts] = {}
        self._owners = Owners()
        #: Events of unknown devices: those that came before the last `ask`, ...
        self._before: Counter[tuple[Subject, _What]] = Counter()
        #: ... and those that came since.
        self._since: Counter[tuple[Subject, _What]] = Counter()
        self.job_errors = JobErrors()
        #: Whether anything has changed since `records`.
        self.changed = False

    def take(self, name: str, data: bytes) -> None:
        """Count an event.

        Raises:
            msgspec.DecodeError, UnicodeError, RecursionError: it does not match QAPI.
        """
        self.changed = True
        self._events[name if name in NAMES else OTHER] += 1
        if name == "BLOCK_JOB_ERROR":
            error = _JOB_ERROR.decode(data)
            self.job_errors.count(error.device, *words(error.operation, error.action))
        elif name == "BLOCK_IO_ERROR":
            event = _BLOCK.decode(data)
            self._take(event, (name, *words(event.operation, event.action)))
        elif name in _NAMED_BY_NODE:
            self._take(_BLOCK.decode(data), (name, "", ""))

    def forget_nodes(self) -> None:
        """Forget all names: there may be another QEMU now, whose names mean other devices.

        Waiting events are counted for device "".
        """
        self.ask()
        self.give_up(Owners())
        self._owners = Owners()
        self.job_errors.clear()

    def ask(self) -> None:
        """Begin a round of queries: their replies are newer than all events so far."""
        self._before += self._since
        self._since.clear()

    def know(self, owners: Owners) -> None:
        """Set the devices and their names from query-blockstats; each has counters from now on."""
        if owners.devices != self._owners.devices:
            self.changed = True
            there = set(owners.devices)
            self._counts = {
                name: counts for name, counts in self._counts.items() if name in there or counts.any
            }
            for name in owners.devices:
                self._counts.setdefault(name, _Counts())
        self._owners = owners

    def find(self) -> bool:
        """Count waiting events whose device is now known; return whether any are left for `give_up`.

        Events that came after `ask` keep waiting: the replies may be older than they are.
        """
        for waiting in (self._before, self._since):
            if waiting:
                self._find(waiting, self._owners)
        return bool(self._before)

    def give_up(self, owners: Owners) -> None:
        """Count the events that waited for these replies: by `owners`, or else for device ""."""
        self._find(self._before, owners)
        for (_, what), count in self._before.items():
            self._count("", what, count)
        self._before.clear()

    def records(self, jobs: Sequence[Job]) -> Mapping[Scope, Sequence[Any]]:
        """Return the counters by scope; `jobs` are those that QEMU has."""
        self.changed = False
        of_device = sorted(self._counts.items())
        return {
            Scope.IO_ERROR: [
                IoErrors(device, *key, count)
                for device, counts in of_device
                for key, count in sorted((NO_ERRORS | counts.io_errors).items())
            ],
            Scope.DEVICE_EVENT: [
                DeviceEvents(device, counts.thresholds, counts.corrupted, counts.quorum or None)
                for device, counts in of_device
            ],
            Scope.JOB_ERROR: self.job_errors.records(jobs),
            Scope.VM_EVENT: [VmEvents(event, n) for event, n in sorted(self._events.items())],
        }

    def _take(self, event: _OfBlock, what: _What) -> None:
        subject = Subject.of(event.device, event.qom_path, event.node_name)
        device = self._owners.device(subject) if subject != _NOTHING else ""
        if device is not None:
            self._count(device, what)
        elif (subject, what) in self._since or len(self._since) < _WAITING_LIMIT:
            self._since[subject, what] += 1
        else:
            self._count("", what)

    def _find(self, waiting: Counter[tuple[Subject, _What]], owners: Owners) -> None:
        for subject, what in list(waiting):
            if (device := owners.device(subject)) is not None:
                self._count(device, what, waiting.pop((subject, what)))

    def _count(self, device: str, what: _What, count: int = 1) -> None:
        self.changed = True
        if device not in self._counts and len(self._counts) >= _DEVICES_LIMIT:
            device = ""
        self._counts.setdefault(device, _Counts()).add(what, count)
