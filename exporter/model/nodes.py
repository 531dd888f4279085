"""The nodes of a backing chain as they are exposed, and the files that hold their data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

import msgspec

from exporter.model import chain as chains
from exporter.model.chain import Chain
from exporter.model.state import Node
from exporter.qmp import schema
from exporter.redact import DEVICE_DRIVERS, data_file, is_on_device, local_path, redact_filename

#: Formats that consist of a single file, apart from the data file that a qcow2 may have.
_ONE_FILE_FORMATS = frozenset(
    {
        "file",
        "host_cdrom",
        "host_device",
        "luks",
        "qcow",
        "qcow2",
        "qed",
        "raw",
        "vdi",
        "vhdx",
        "vpc",
    }
)


def word(value: bool | None) -> str:
    """Return "true" or "false" for a label, "" if the value is not known."""
    return "" if value is None else "true" if value else "false"


def image_files(blocks: Mapping[str, schema.BlockInfo]) -> frozenset[str]:
    """Return the path of every image file. QEMU may also stat others to answer query-block."""
    return frozenset(
        path
        for info in blocks.values()
        for image in chains.images(info)
        for path in (local_path(image.filename), _data_file(image, frozenset()))
        if path
    )


def are_all_files(blocks: Mapping[str, schema.BlockInfo]) -> bool:
    """Whether `image_files` are all that QEMU has open for these devices, judging by the formats.

    A quorum has children, a vmdk may have extents and a qcow2 a data file that are not named there.
    """
    return all(
        image.format in _ONE_FILE_FORMATS
        and local_path(image.filename) is not None
        and _data_file(image, frozenset()) != ""
        for info in blocks.values()
        for image in chains.images(info)
    )


def header_data_files(blocks: Mapping[str, schema.BlockInfo]) -> frozenset[str]:
    """Return the data files named in image headers; QEMU may have been given others."""
    return frozenset(
        data.data_file
        for info in blocks.values()
        for image in chains.images(info)
        if (data := _data(image)) is not None and data.data_file
    )


def of_chain(
    chain: Chain, data_files: AbstractSet[str]
) -> tuple[tuple[Node, ...], Sequence[schema.BlockNode], Sequence[tuple[str, str]]]:
    """Return the nodes of a chain, the entries of those with counters, and the files of the latter.

    The files are the path of the image and that of the file with its data, which differ if it has a
    data file; "" if not known, or if the node has none.
    """
    nodes: list[Node] = []
    sources: list[schema.BlockNode] = []
    files: list[tuple[str, str]] = []
    for index, layer in enumerate(chain.layers):
        image = _measured(layer, chain.images[index]) if chain.images else None
        data = _data_file(image, data_files) if image else None
        nodes.append(_format_node(str(index), layer, image))
        sources.append(layer)
        own = (local_path(image.filename) if image else None) or ""
        files.append((own, own if data is None else data))
        if (protocol := chains.protocol_of(layer)) is not None:
            nodes.append(_protocol_node(str(index), protocol, image, data))
            sources.append(protocol)
            files.append(("", ""))
        elif layer.node_name == chain.root_name:
            # Several nodes hold the data, as in a quorum: query-blockstats lists none of them.
            nodes += [_uncounted(str(index), name) for name in chain.children if name]
    nodes += [
        Node(
            layer="",
            role="filter",
            node_name=each.node.node_name,
            has_info=True,
            driver=each.image.format,
        )
        for each in chain.filters
        if each.image is not None and each.image.format in chains.LASTING_FILTERS
    ]
    return tuple(nodes), sources, files


def _format_node(layer: str, entry: schema.BlockNode, image: schema.Image | None) -> Node:
    if image is None:
        return Node(layer=layer, role="format", node_name=entry.node_name)
    data = image.format_specific.data if image.format_specific else None
    return Node(
        layer=layer,
        role="format",
        node_name=entry.node_name,
        image=image,
        internal_snapshots=None if image.snapshots is None else len(image.snapshots),
        has_info=True,
        driver=image.format,
        file=redact_filename(image.filename),
        backing_file=redact_filename(image.backing_filename),
        backing_format=image.backing_filename_format,
        encrypted=word(image.encrypted),
        compat=(data and data.compat) or "",
    )


def _uncounted(layer: str, name: str) -> Node:
    return Node(layer=layer, role="protocol", node_name=name, listed=False, has_info=True)


def _protocol_node(
    layer: str, entry: schema.BlockNode, image: schema.Image | None, data: str | None
) -> Node:
    return Node(
        layer=layer,
        role="protocol",
        node_name=entry.node_name,
        has_info=None if image is None else True,
        driver=entry.driver_specific.driver if entry.driver_specific else "",
        file=(redact_filename(image.filename) if data is None else data) if image else "",
    )


def _data(image: schema.Image) -> schema.FormatData | None:
    return image.format_specific.data if image.format_specific else None


def _data_file(image: schema.Image, opened: AbstractSet[str]) -> str | None:
    """Return the path of the file that holds the guest's data, None if it is the image itself.

    It is "" if it is not known: a qcow2 reports the name in its header, though QEMU may have been
    given another file. `opened` are the names of files that QEMU has open.
    """
    data = _data(image)
    if data is None:
        return None
    if data.data_file is not None or data.data_file_raw is not None:
        if named := data_file(image.filename):
            return named
        header = data.data_file or ""
        return header if header in opened else ""
    names = {extent.filename for extent in data.extents} - {image.filename}
    if not names:
        return None
    return (local_path(names.pop()) or "") if len(data.extents) == 1 else ""


def _measured(layer: schema.BlockNode, image: schema.Image) -> schema.Image:
    """Return an image without its allocated size if that is on a block device, where it is always 0.

    QEMU adds up the allocated blocks of an image's files. [bdrv_get_allocated_file_size]
    """
    file = chains.protocol_of(layer) or layer
    if file.driver_specific is not None:
        known = file.driver_specific.driver not in DEVICE_DRIVERS
    else:
        # A quorum has several files; QEMU before 4.2 does not report the driver.
        known = not is_on_device(image.filename)
    return image if known else msgspec.structs.replace(image, actual_size=None)
