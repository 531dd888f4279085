"""Records of the snapshots that users requested.

The path of a layer's file is the key of its request. Where no answer came, the same request again
finds the disk on that layer, or the file as it was made, which is then used for it. A file that
anybody else made, or that anything was written to, is never used.
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from hashlib import sha256

import msgspec
from msgspec import Struct

from exporter import api
from exporter.admin import overlay_file
from exporter.admin.overlay_file import AllowedLocation, CreatedFile
from exporter.admin.preconditions import Found
from exporter.admin.record_store import KEPT_SECONDS, RECORDS_LIMIT, RecordKind, RecordStore
from exporter.errors import LayerLost, Refused
from exporter.qmp import Image
from exporter.redact import redact_filename

log = logging.getLogger(__name__)


class SnapshotRecord(Struct, kw_only=True, frozen=True):
    """A snapshot that a user requested, and the file that was created for it."""

    vm: str
    device: str
    file: str
    user: str
    requested_timestamp_seconds: float
    #: Name of the new node in QEMU, which accepts no name twice.
    node_name: str
    #: Device and inode number of the file.
    file_device: int
    file_inode: int
    #: Whether the disk was seen to have the layer; its file is then not used again.
    taken: bool = False

    @property
    def made(self) -> CreatedFile:
        """The file that was made for it."""
        return CreatedFile(self.file, self.file_device, self.file_inode)


def _digest(file: str) -> str:
    return sha256(file.encode("utf-8", "surrogatepass")).hexdigest()


_SNAPSHOTS = RecordKind(
    type=SnapshotRecord,
    name="snapshots",
    suffix=".snapshot",
    key_pattern="[0-9a-f]{64}",
    key=lambda asked: _digest(asked.file),
    kept_until_seconds=lambda asked: asked.requested_timestamp_seconds + KEPT_SECONDS,
)


class SnapshotRecords:
    """All records of snapshots, in the same directory as those of jobs."""

    def __init__(self, folder: str, limit: int = RECORDS_LIMIT) -> None:
        """Read what is there.

        Raises:
            ConfigError: the directory cannot be read or written.
        """
        self._store = RecordStore(folder, _SNAPSHOTS, limit)

    def get(self, vm: str, request: api.Snapshot) -> SnapshotRecord | None:
        """Return the record of a request, None if there is none."""
        asked = self._store.get(vm, _digest(request.file))
        return asked if asked is not None and asked.device == request.device else None

    def node_name(self, vm: str, request: api.Snapshot) -> str:
        """Return the name of the new node: the same one for each try."""
        asked = self.get(vm, request)
        return asked.node_name if asked else f"{api.JOB_ID_PREFIX}{secrets.token_hex(8)}"

    def was_taken(self, vm: str, request: api.Snapshot, found: Found) -> bool:
        """Whether the same request was carried out before: the disk has the layer.

        Raises:
            Refused: it has one in a file of this name that was not made for this request.
            LayerLost: it has one in a file of this name, which is there no more.
        """
        for node in found.layers:
            if node.file == redact_filename(request.file):
                asked = self.get(vm, request)
                if asked and asked.made.is_there:
                    self.note_taken(vm, request)
                    return True
                where = f"layer {node.layer} of {request.device}"
                if asked and not os.path.lexists(request.file):
                    raise LayerLost(f"{request.file} is {where}, and was removed")
                raise Refused("file-exists", f"{request.file} is {where}")
        return False

    def check(self, vm: str, request: api.Snapshot, where: AllowedLocation, found: Found) -> None:
        """Check whether the file may be created, or used again, without creating it.

        Raises:
            Refused: it may not.
        """
        overlay_file.check(request.file, where, _active(found), self._unused(vm, request))

    def prepare(
        self,
        vm: str,
        request: api.Snapshot,
        user: str,
        name: str,
        where: AllowedLocation,
        found: Found,
    ) -> SnapshotRecord | None:
        """Create and record the file; return None if both existed already.

        Raises:
            Refused: one of the two failed; neither is left behind.
        """
        kept = self._unused(vm, request)
        made = overlay_file.make(request.file, where, _active(found), kept)
        if made is kept:
            return None
        asked = SnapshotRecord(
            vm=vm,
            device=request.device,
            file=request.file,
            user=user,
            requested_timestamp_seconds=time.time(),
            node_name=name,
            file_device=made.device,
            file_inode=made.inode,
        )
        try:
            self._store.put(asked)
        except Refused:
            made.remove()
            raise
        return asked

    def is_there(self, vm: str, request: api.Snapshot) -> bool:
        """Whether the file that was created for a request still has its name."""
        asked = self.get(vm, request)
        return asked is not None and asked.made.is_there

    def note_taken(self, vm: str, request: api.Snapshot) -> None:
        """Record that the disk has the layer."""
        asked = self.get(vm, request)
        if asked is None or asked.taken:
            return
        try:
            self._store.put(msgspec.structs.replace(asked, taken=True))
        except Refused as error:
            # Not needed for safety: a file that a guest wrote to is not used again.
            log.warning("not recorded", extra={"vm": vm, "err": str(error)})

    def undo(self, asked: SnapshotRecord | None) -> None:
        """Remove what `prepare` created; what had been there before stays."""
        if asked is not None:
            asked.made.remove()
            self._store.remove(asked)

    def _unused(self, vm: str, request: api.Snapshot) -> CreatedFile | None:
        """Return the file that was created for a request if no disk was seen to have it as a layer."""
        asked = self.get(vm, request)
        if asked is None or not asked.made.is_there:
            return None
        if asked.taken:
            raise Refused(
                "file-exists", f"{request.file} exists: it was a layer of {request.device} before"
            )
        return asked.made


def _active(found: Found) -> Image:
    image = found.layers[0].image
    assert image is not None  # otherwise it is not writable
    return image
