"""Builds the empty qcow2 image with a backing file that a snapshot starts with.

The smallest that the format allows: header, one table of reference counts with one block, and an
L1 table without an entry, each on clusters of 64 KiB. [docs/interop/qcow2.txt, version 3]
"""

from __future__ import annotations

import struct

CLUSTER_BYTES = 65536
#: Longest name of a backing file. [qcow2.txt, backing_file_size]
BACKING_LIMIT_BYTES = 1023
_MAGIC = 0x514649FB
_VERSION = 3
_HEADER_BYTES = 104
_EXTENSION_BACKING_FORMAT = 0xE2792ACA
#: Guest bytes that one entry of the L1 table covers.
_L1_ENTRY_BYTES = CLUSTER_BYTES * (CLUSTER_BYTES // 8)
#: How many reference counts of 16 bits fit into one cluster.
_COUNTS_PER_BLOCK = CLUSTER_BYTES // 2
#: Largest image: its L1 table has the largest size that QEMU accepts. [QCOW_MAX_L1_SIZE, 32 MiB]
SIZE_LIMIT_BYTES = 32 * 1024 * 1024 // 8 * _L1_ENTRY_BYTES
_REFCOUNT_TABLE, _REFCOUNT_BLOCK, _L1_TABLE = CLUSTER_BYTES, 2 * CLUSTER_BYTES, 3 * CLUSTER_BYTES


def overlay(size_bytes: int, backing_file: str, backing_format: str) -> tuple[bytes, int]:
    """Return an empty image of `size_bytes`, without the zeros at its end, and how long it is.

    Raises:
        ValueError: it would be empty or too large, or name or format of its backing file cannot stand
            in a header.
    """
    name = backing_file.encode("utf-8", "surrogateescape")
    if not 0 < len(name) <= BACKING_LIMIT_BYTES:
        raise ValueError(f"its backing file has a name of more than {BACKING_LIMIT_BYTES} bytes")
    if b"\0" in name:
        raise ValueError("its backing file has a NUL in its name")
    if not 0 < size_bytes <= SIZE_LIMIT_BYTES:
        raise ValueError(f"a qcow2 image cannot have a size of {size_bytes} bytes")
    l1_entries = -(-size_bytes // _L1_ENTRY_BYTES)
    clusters = 3 + -(-l1_entries * 8 // CLUSTER_BYTES)
    assert clusters <= _COUNTS_PER_BLOCK
    kind = backing_format.encode("ascii")
    extensions = struct.pack(">II", _EXTENSION_BACKING_FORMAT, len(kind)) + kind
    extensions += bytes(-len(extensions) % 8) + bytes(8)
    name_at = _HEADER_BYTES + len(extensions)
    header = struct.pack(
        ">IIQIIQIIQQIIQQQQII",
        _MAGIC,
        _VERSION,
        name_at,
        len(name),
        CLUSTER_BYTES.bit_length() - 1,
        size_bytes,
        0,  # not encrypted
        l1_entries,
        _L1_TABLE,
        _REFCOUNT_TABLE,
        1,  # cluster of the table of reference counts
        0,  # internal snapshots
        0,
        0,  # features that are incompatible, compatible, auto-clear
        0,
        0,
        4,  # reference counts of 1 << 4 bits
        _HEADER_BYTES,
    )
    first = header + extensions + name
    if len(first) > CLUSTER_BYTES:
        raise ValueError(f"its backing file has a format of {len(kind)} characters")
    table = struct.pack(">Q", _REFCOUNT_BLOCK)
    counts = struct.pack(">H", 1) * clusters
    image = first.ljust(_REFCOUNT_TABLE, b"\0") + table.ljust(CLUSTER_BYTES, b"\0") + counts
    return image, clusters * CLUSTER_BYTES
