"""The disks of a VM: two by -drive, one virtio and one SCSI by -blockdev, a CD drive, and nodes under none."""

from __future__ import annotations

from tests.truth.disk import Disk
from tests.truth.machine import Machine, blockdev, node


class _Arguments:
    """The command line of a VM, as its disks are added."""

    def __init__(self, machine: Machine, *, daemon: bool) -> None:
        self.machine = machine
        self.parts: list[str] = []
        self._daemon = daemon

    def chain(self, kind: str, label: str, layers: int) -> Disk:
        """Add layers without a device yet."""
        made: list[tuple[str, str]] = []
        below: str | None = None
        for _ in range(layers):
            name, file = self.machine.unique("n"), self.machine.overlay()
            self.parts += blockdev(node(name, file, below), daemon=self._daemon)
            made.append((name, file))
            below = name
        disk = Disk(self.machine, label and f"{self.machine.name}-{label}", kind, below or "", made)
        disk.qdev = disk.label
        return disk

    def drive(self, label: str) -> Disk:
        """Add a disk by -drive."""
        label, name = f"{self.machine.name}-{label}", self.machine.unique("n")
        image = self.machine.overlay()
        self.parts += ["-drive", f"if=none,id={label},file={image},format=qcow2,node-name={name}"]
        return Disk(self.machine, label, "drive", name, [])

    def device(self, driver: str, disk: Disk) -> None:
        """Plug a device on layers."""
        self.parts += ["-device", f"{driver},id={disk.label},drive={disk.top},share-rw=on"]


def furnish(machine: Machine, *, daemon: bool = False) -> list[list[Disk]]:
    """Start a VM or a storage daemon with disks; return which of them each pair of hands has."""
    arguments = _Arguments(machine, daemon=daemon)
    loose, exported = arguments.chain("loose", "", 2), arguments.chain("export", "", 2)
    groups = [[exported], [loose]]
    if not daemon:
        drives = [arguments.drive("d0"), arguments.drive("d1")]
        virtio, scsi = arguments.chain("blockdev", "v0", 2), arguments.chain("blockdev", "s0", 1)
        arguments.device("virtio-blk-pci", virtio)
        virtio.qdev = f"{virtio.label}/virtio-backend"
        arguments.parts += ["-device", "virtio-scsi-pci,id=scsi"]
        arguments.device("scsi-hd", scsi)
        arguments.parts += ["-device", "scsi-cd,id=cd"]
        groups = [drives, [virtio], [scsi], [loose] if machine.number % 2 else [exported]]
    machine.start(arguments.parts, daemon=daemon)
    address = {"type": "unix", "data": {"path": str(machine.folder / "nbd")}}
    machine.run("nbd-server-start", addr=address)
    export = {"type": "nbd", "id": "export", "node-name": exported.top, "writable": True}
    machine.send("block-export-add", export)
    return groups
