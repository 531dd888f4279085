"""Records of the jobs that users started, by id. They are kept for 7 days after the last change."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from exporter.admin.record_store import KEPT_SECONDS, RECORDS_LIMIT, RecordKind, RecordStore
from exporter.api import Outcome
from exporter.jobs import End

#: How long the record of a job is kept that has not ended or is still in QEMU: its VM may be gone.
OPEN_SECONDS = 90 * 24 * 3600.0


class JobRecord(Struct, kw_only=True, frozen=True):
    """A job that a user requested, and what became of it."""

    vm: str
    job_id: str
    job_type: str
    device: str
    user: str
    #: The request without the id.
    request: dict[str, Any]
    requested_timestamp_seconds: float
    #: Whether QEMU confirmed the job, or was seen to have it.
    started: bool = False
    #: Whether the job stays in QEMU until it is dismissed.
    kept_by_qemu: bool = False
    #: The layers' node names, `0` first, and which of them it works on.
    chain: list[str] = []
    top: int | None = None
    base: int | None = None
    outcome: Outcome | None = None
    error: str = ""
    ended_timestamp_seconds: float | None = None
    dismissed: bool = False
    #: When it was last seen running, accurate to a day.
    seen_timestamp_seconds: float = 0.0

    @property
    def changed_timestamp_seconds(self) -> float:
        """When the record last changed."""
        ended = self.ended_timestamp_seconds or 0.0
        return max(self.requested_timestamp_seconds, self.seen_timestamp_seconds, ended)

    @property
    def open(self) -> bool:
        """Whether something remains to be done about it."""
        return self.outcome is None or (
            self.kept_by_qemu and self.started and not self.dismissed and self.outcome != "unknown"
        )

    @property
    def end(self) -> End | None:
        """How the job ended, None if that is not known."""
        if self.outcome in (None, "unknown") or self.ended_timestamp_seconds is None:
            return None
        at = self.ended_timestamp_seconds
        return End(self.job_type, self.device, self.outcome, at, self.error)

    def with_end(self, end: End, *, dismissed: bool = False) -> JobRecord:
        """Return the record with the end of its job."""
        return msgspec.structs.replace(
            self,
            started=True,
            outcome=end.result,
            error=end.error,
            ended_timestamp_seconds=end.timestamp_seconds,
            dismissed=dismissed or self.dismissed,
        )


def _kept_until_seconds(entry: JobRecord) -> float:
    kept = OPEN_SECONDS if entry.open else KEPT_SECONDS
    return entry.changed_timestamp_seconds + kept


def _outranks(known: JobRecord, new: JobRecord) -> bool:
    """Whether `new` was observed before the job ended, and comes late."""
    return bool(known.outcome and not new.outcome)


_JOBS = RecordKind(
    type=JobRecord,
    name="requests",
    suffix=".json",
    key_pattern="qbe-[^@]*",
    key=lambda entry: entry.job_id,
    kept_until_seconds=_kept_until_seconds,
    outranks=_outranks,
)


class JobRecords(RecordStore[JobRecord]):
    """All records, by VM and job id."""

    def __init__(self, folder: str, limit: int = RECORDS_LIMIT) -> None:
        """Read what is there.

        Raises:
            ConfigError: the directory cannot be read or written.
        """
        super().__init__(folder, _JOBS, limit)

    def open(self, vm: str) -> list[JobRecord]:
        """Return the records of a VM about which something remains to be done."""
        return [entry for entry in self.of(vm) if entry.open]
