"""The virtual machines of the demo, real or simulated, and what happens to each."""

from __future__ import annotations

from dataclasses import dataclass

KIB, MIB = 1024, 1024 * 1024

DISK_BYTES = 96 * MIB
#: The guest fills every second block of this size: a job copies contiguous data at once, and would
#: progress in steps of 16 MiB if all of it were contiguous.
BLOCK_BYTES = 64 * KIB
#: Layers of the disk that is committed, before its first snapshot.
CHAIN_LAYERS = 3


@dataclass(frozen=True, slots=True)
class Scenario:
    """One virtual machine with two disks: one with a backing chain that grows and is committed."""

    #: The last part of the VM's name.
    name: str
    #: Whether the disks use `-blockdev`, as with libvirt, instead of `-drive`.
    libvirt: bool
    #: How much the guest writes between the snapshot and the commit.
    overlay_bytes: int
    speed_bytes_per_second: int
    #: How long the commit stays ready before it is completed; None: until the user completes it.
    ready_seconds: float | None
    #: Time between a commit and the next snapshot.
    rest_seconds: float = 5.0

    @property
    def chain_device(self) -> str:
        """The disk with the backing chain."""
        return "virtio-disk0" if self.libvirt else "disk0"

    @property
    def data_device(self) -> str:
        """The disk without one."""
        return "virtio-disk1" if self.libvirt else "disk1"

    @property
    def style(self) -> str:
        """How the disks are given to QEMU."""
        return "by -blockdev, as libvirt does it" if self.libvirt else "by -drive"

    @property
    def story(self) -> str:
        """What happens, in one line."""
        seconds = self.overlay_bytes / self.speed_bytes_per_second
        end = (
            "becomes ready, and waits for somebody to complete it"
            if self.ready_seconds is None
            else f"completed {self.ready_seconds:g} s after it becomes ready, then repeated"
        )
        return (
            f"snapshot, {self.overlay_bytes // MIB} MiB written, block-commit at"
            f" {self.speed_bytes_per_second // KIB} KiB/s ({seconds:.0f} s), {end}"
        )


SCENARIOS = (
    Scenario("web", False, 40 * MIB, 384 * KIB, 15.0),
    Scenario("db", True, 12 * MIB, 512 * KIB, 10.0),
    Scenario("mail", False, 4 * MIB, 256 * KIB, None),
)
