"""Events: their shapes, and what those of one VM told: how many of which, and of what.

Pure, and bounded whatever a VM sends: labels are words that QEMU has and names of devices.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec

from exporter.family import Scope
from exporter.model import Device, DeviceEvents, IoErrors, VmEvents

#: Every event of QAPI's, of QEMU 2.0 to 11.1.
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
    RDMA_GID_STATUS_CHANGED RESET RESUME RTC_CHANGE SHUTDOWN SPICE_CONNECTED SPICE_DISCONNECTED
    SPICE_INITIALIZED SPICE_MIGRATE_COMPLETED STOP SUSPEND SUSPEND_DISK UNPLUG_PRIMARY
    VFIO_MIGRATION VFU_CLIENT_HANGUP VNC_CONNECTED VNC_DISCONNECTED VNC_INITIALIZED
    VSERPORT_CHANGE WAKEUP WATCHDOG
    """.split()  # noqa: SIM905  # a page of quotes reads worse
)
#: IoOperationType and BlockErrorAction.
_OPERATIONS = frozenset({"read", "write"})
_ACTIONS = frozenset({"ignore", "report", "stop"})
OTHER = "other"
#: Most devices of one VM that are counted apart.
_DEVICES_LIMIT = 4096
_NAME_LIMIT = 255


#: No id of QEMU's is longer; it is remembered for as long as the job is there.
ID_LIMIT = 1024
Id = Annotated[str, msgspec.Meta(max_length=ID_LIMIT)]


class _Subject(msgspec.Struct, rename="kebab"):
    """What a block event is about; QEMU fills in what it knows."""

    #: Of BLOCK_IO_ERROR and BLOCK_IMAGE_CORRUPTED: empty for `-blockdev`.
    device: str = ""
    #: Of BLOCK_IO_ERROR, since QEMU 10.0.
    qom_path: str = ""
    #: Of all three.
    node_name: str = ""
    #: Of BLOCK_IO_ERROR.
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


STATUS_CHANGE = msgspec.json.Decoder(JobStatusChange)
BLOCK_JOB = msgspec.json.Decoder(BlockJobEvent)
_SUBJECT = msgspec.json.Decoder(_Subject)


class Events:
    """The events of one VM, counted."""

    def __init__(self) -> None:
        self._events: Counter[str] = Counter()
        self._io_errors: Counter[tuple[str, str, str]] = Counter()
        #: Device -> BLOCK_WRITE_THRESHOLD and BLOCK_IMAGE_CORRUPTED.
        self._thresholds: Counter[str] = Counter()
        self._corrupted: Counter[str] = Counter()
        #: Whether anything was counted since `records`.
        self.changed = False

    def take(self, name: str, data: bytes, devices: Sequence[Device]) -> None:
        """Count an event; `devices` are the last known.

        Raises:
            msgspec.DecodeError, UnicodeError, RecursionError: it is not what QAPI says.
        """
        self.changed = True
        self._events[name if name in NAMES else OTHER] += 1
        if name == "BLOCK_IO_ERROR":
            subject = _SUBJECT.decode(data)
            operation = _word(subject.operation, _OPERATIONS)
            action = _word(subject.action, _ACTIONS)
            device = self._bounded(_device(subject, devices))
            self._io_errors[device, operation, action] += 1
        elif name == "BLOCK_WRITE_THRESHOLD":
            self._thresholds[self._bounded(_device(_SUBJECT.decode(data), devices))] += 1
        elif name == "BLOCK_IMAGE_CORRUPTED":
            self._corrupted[self._bounded(_device(_SUBJECT.decode(data), devices))] += 1

    def records(self) -> Mapping[Scope, Sequence[Any]]:
        """Return what was counted, by what it is about."""
        self.changed = False
        return {
            Scope.IO_ERROR: [IoErrors(*key, n) for key, n in sorted(self._io_errors.items())],
            Scope.DEVICE_EVENT: [
                DeviceEvents(device, self._thresholds.get(device), self._corrupted.get(device))
                for device in sorted(self._thresholds.keys() | self._corrupted.keys())
            ],
            Scope.VM_EVENT: [VmEvents(event, n) for event, n in sorted(self._events.items())],
        }

    def _bounded(self, device: str) -> str:
        counted = len(self._io_errors) + len(self._thresholds) + len(self._corrupted)
        known = device in self._thresholds or device in self._corrupted
        return device if known or counted < _DEVICES_LIMIT else ""


def _word(word: str, known: frozenset[str]) -> str:
    return word if word in known else OTHER


def _device(subject: _Subject, devices: Sequence[Device]) -> str:
    """Find the `device` label of what an event is about, empty where it is not known."""
    if subject.device and len(subject.device) <= _NAME_LIMIT:
        return subject.device
    for device in devices:
        if subject.qom_path and device.qdev == subject.qom_path:
            return device.device
    for device in devices:
        if subject.node_name and any(n.node_name == subject.node_name for n in device.nodes):
            return device.device
    return ""
