"""Preconditions on images whose names do not lead to them. Pure functions of one snapshot.

The name of an image goes into the header of the layer above it, and what is merged into an image
without a name is gone with the VM.
"""

from __future__ import annotations

from collections.abc import Mapping

from exporter.admin.preconditions import Found, Range
from exporter.errors import Refused
from exporter.model import FileName, ImageFile, Node, VmState
from exporter.redact import local_path

#: Kinds of names that do not lead to the image, or only in QEMU.
_MISLEADING = frozenset({FileName.FDSET, FileName.REMOVED, FileName.OTHER})


def may_be_backing(snapshot: VmState, found: Found) -> None:
    """Require that the name of the active layer, which the header of a new layer gets, leads to it.

    Raises:
        Refused: it does not. QEMU would also remove each layer on top of `snapshot=on`.
    """
    _named(snapshot, found, found.layers[0])


def may_be_merged(snapshot: VmState, found: Found, layers: Range) -> None:
    """Require that the names of all layers of a commit lead to them.

    Raises:
        Refused: one does not.
    """
    for node in found.layers[layers.top : layers.base + 1]:
        _named(snapshot, found, node)
    base = found.layers[layers.base]
    path = _path(base)
    if layers.top > 0 and path is not None and not path.startswith("/"):
        # QEMU writes it as it is into the header of the layer above. [bdrv_drop_intermediate]
        raise Refused(
            "unnamed-image",
            f"the name {base.file} of layer {base.layer} of {found.device.device}"
            f" {FileName.RELATIVE.value}, and would be written into the header of layer"
            f" {layers.top - 1}, which may be in another one",
        )


def unseen(snapshot: VmState) -> str:
    """Return why the files of a VM whose open files are not visible are unknown, "" if they are known."""
    for device in snapshot.devices:
        for node in device.nodes:
            path = _path(node) if node.role == "format" else None
            if path is not None and (path.startswith("/dev/fdset/") or not path.startswith("/")):
                return f"has an image that its name does not identify, {node.file}"
    return ""


def _named(snapshot: VmState, found: Found, node: Node) -> None:
    file = _files(snapshot).get(_path(node) or "")
    if file is not None and file.name in _MISLEADING:
        raise Refused(
            "unnamed-image",
            f"the name {node.file} of layer {node.layer} of {found.device.device}"
            f" {file.name.value}",
        )


def _files(snapshot: VmState) -> Mapping[str, ImageFile]:
    nodes = [node for device in snapshot.devices for node in device.nodes if node.counts]
    # `files` is empty if nothing was visible.
    each = zip(nodes, snapshot.counters.files, strict=False)
    return {path: file for node, file in each if file is not None and (path := _path(node))}


def _path(node: Node) -> str | None:
    return local_path(node.image.filename) if node.image else None
