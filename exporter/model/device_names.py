"""The `device` label: a name that outlives every snapshot, pivot and restart."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from exporter.errors import ProtocolError
from exporter.qmp import schema

_IN_PERIPHERAL = re.compile(r"^/machine/peripheral/([^/]+)(?:/virtio-backend)?$")


def join_key(entry: schema.BlockStats | schema.BlockInfo) -> str:
    """Return the key that joins an entry of query-blockstats with one of query-block."""
    # A drive may have the same id as another device, hence the prefix. Before QEMU 3.0 only
    # query-block has the qdev of a drive, so it cannot be part of a drive's key.
    return entry.device or f"qdev {entry.qdev}"


def device_names(entries: Sequence[schema.BlockStats]) -> list[str]:
    """Return the `device` label of each entry: a name that outlives every snapshot.

    Raises:
        ProtocolError: two devices have the same name.
    """
    names = [entry.device or _id_of_qdev(entry.qdev) for entry in entries]
    # A longer name is used only for devices that share the shorter one with another device.
    for longer in (_path_of_qdev, _whole_path_of_qdev):
        short = Counter(names)
        for index, entry in enumerate(entries):
            if not entry.device and short[names[index]] > 1:
                names[index] = longer(entry.qdev)
    twice, count = next(iter(Counter(names).most_common(1)), ("", 0))
    if count > 1:
        raise ProtocolError(f"query-blockstats has two devices named {twice!r}")
    return names


def _id_of_qdev(qdev: str) -> str:
    match = _IN_PERIPHERAL.match(qdev)
    if match:
        return match[1]
    return _path_of_qdev(qdev) if qdev.startswith("/") else qdev


def _path_of_qdev(qdev: str) -> str:
    return _whole_path_of_qdev(qdev).removeprefix("/machine/").removesuffix("/virtio-backend")


def _whole_path_of_qdev(qdev: str) -> str:
    # A device with an id is reported by the id alone; its path is below /machine/peripheral.
    return qdev if qdev.startswith("/") else f"/machine/peripheral/{qdev}"
