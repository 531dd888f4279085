"""Finds out whether the storage of an image answers, and which files a QEMU has open."""

from __future__ import annotations

from exporter.storage import mounts, open_files
from exporter.storage.file_stat import FileStat
from exporter.storage.mounts import Mount
from exporter.storage.open_files import OpenFile, OpenFiles
from exporter.storage.prober import Storage, StorageBusy, StorageHangs

__all__ = [
    "FileStat",
    "Mount",
    "OpenFile",
    "OpenFiles",
    "Storage",
    "StorageBusy",
    "StorageHangs",
    "mounts",
    "open_files",
]
