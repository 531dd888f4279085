"""THE TABLE: every exported metric, one line each.

This file is the public contract of the program. METRICS.md, the HELP, TYPE and UNIT lines, the
order of the exposition, the types that QMP replies are decoded into (`qmp.schema`) and the plan by
which a VM's state is rendered (`expose.plan`) are all derived from it.

A line has the name without the prefix of its factory, the field in QEMU's reply, a help text,
and where needed the divisor to the base unit, the type of the field, or what a zero means.
"""

from __future__ import annotations

import re
from dataclasses import replace

from exporter.metrics.types import IO_STATES, JOB_STATES, NS, RUN_STATES, Metric, Scope, ZeroMeaning


# fmt: off
def _row(scope: Scope, owner: str, name: str, field: str, text: str, collector: str,
         divisor: int = 1, type: type = int, zero: ZeroMeaning = ZeroMeaning.VALUE, labels: tuple[str, ...] = (),
         states: tuple[str, ...] = (), kind: str = "", source: str = "") -> Metric:
    name = scope.prefix + name
    kind = kind or ("counter" if name.endswith("_total") else "info" if name.endswith("_info") else "gauge")
    path = (*owner.split("."), *field.split(".")) if owner else tuple(field.split("."))
    return Metric(
        name=name, scope=scope, kind=kind, path=tuple(p.replace("-", "_") for p in path if p),
        field=source + field, text=text, collector=collector, divisor=divisor, type=type, zero=zero,
        labels=labels, states=states,
    )

def _vm(name: str, field: str, text: str, **more: object) -> Metric:
    return _row(Scope.VM, "", name, field, text, "", source="", **more)  # type: ignore[arg-type]

def _own(scope: Scope, name: str, attribute: str, text: str, collector: str = "", **more: object) -> Metric:
    """A value that this program determines itself: HELP shows no field of QEMU's."""
    return replace(_row(scope, "", name, attribute, text, collector, **more), field="")  # type: ignore[arg-type]

def _io(name: str, field: str, text: str, divisor: int = 1, zero: ZeroMeaning = ZeroMeaning.VALUE) -> Metric:
    return _row(Scope.DEVICE, "", name, field, text, "io", divisor, zero=zero)

def _latency(name: str, field: str, text: str) -> Metric:
    return _row(Scope.DEVICE, "", name, field, text, "latency", NS, kind="histogram")

def _interval(name: str, field: str, text: str, divisor: int = 1, type: type = int, zero: ZeroMeaning = ZeroMeaning.VALUE) -> Metric:
    return _row(Scope.INTERVAL, "timed", name, field, text, "intervals", divisor, type, zero, source="stats.timed_stats.")

def _state(name: str, field: str, text: str, **more: object) -> Metric:
    return _row(Scope.DEVICE, "block", name, field, text, "state", **more)  # type: ignore[arg-type]

def _throttle(name: str, field: str, text: str) -> Metric:
    return _row(Scope.THROTTLE, "limits", name, field, text, "throttle", zero=ZeroMeaning.UNSET, source="inserted.")

_ROOT = " query-block reports it for the root node only: absent for a layer below a filter (throttle, a running backup) or an overlay."
def _bitmap(name: str, field: str, text: str, type: type = int) -> Metric:
    return _row(Scope.BITMAP, "state", name, field, text + _ROOT, "bitmaps", type=type, source="inserted.dirty-bitmaps.")

def _image(name: str, field: str, text: str, type: type = int) -> Metric:
    return _row(Scope.NODE, "image", name, field, text, "layers", type=type, source="inserted.image.")

def _node(name: str, field: str, text: str, zero: ZeroMeaning = ZeroMeaning.VALUE) -> Metric:
    return _row(Scope.NODE, "", name, field, text, "layers", zero=zero)

def _job(name: str, field: str, text: str, type: type = int, states: tuple[str, ...] = ()) -> Metric:
    return _row(Scope.JOB, "job", name, field, text, "jobs", type=type, states=states)

def _event(scope: Scope, name: str, attribute: str, event: str, text: str) -> Metric:
    """A count of events: HELP shows the event's name as the field."""
    return replace(_own(scope, name, attribute, text, "events"), field=event)


VM = (
    _own(Scope.VM, "up", "up", "Whether the virtual machine answered all basic queries (1) or not (0).", type=bool),
    _own(Scope.VM, "info", "", "Name, UUID and QEMU version of the virtual machine, what manages it, and its monitor socket.",
         labels=("name", "uuid", "qemu_version", "manager", "socket")),
    _vm("running", "running", "Whether the virtual CPUs are running.", type=bool),
    _vm("status", "status", "The run state: 1 for the current one.", type=str, states=RUN_STATES),
    _own(Scope.VM, "scrape_duration_seconds", "duration_seconds", "Time spent querying this virtual machine and decoding its replies.", type=float),
    _own(Scope.VM, "scrape_error", "reason", "Why this virtual machine is down.", type=str, labels=("reason",)),
    _own(Scope.VM, "last_seen_timestamp_seconds", "last_seen_timestamp_seconds", "When this virtual machine last answered all basic queries.", type=float),
    _own(Scope.VM, "topology_timestamp_seconds", "topology_timestamp_seconds", "When this virtual machine last answered query-block.", type=float),
    _own(Scope.VM, "storage_responding", "storage_responding", "Whether the storage answers, of every image file that the exporter can see.", type=bool),
)

IO = (
    _io("read_bytes_total", "stats.rd_bytes", "Bytes read."),
    _io("written_bytes_total", "stats.wr_bytes", "Bytes written."),
    _io("discarded_bytes_total", "stats.unmap_bytes", "Bytes discarded."),
    _io("zone_appended_bytes_total", "stats.zone_append_bytes", "Bytes appended to zones.", zero=ZeroMeaning.UNUSED),
    _io("reads_completed_total", "stats.rd_operations", "Reads that succeeded; failed and invalid ones are not among them."),
    _io("writes_completed_total", "stats.wr_operations", "Writes that succeeded; failed and invalid ones are not among them."),
    _io("discards_completed_total", "stats.unmap_operations", "Discards that succeeded; failed and invalid ones are not among them."),
    _io("flushes_completed_total", "stats.flush_operations", "Flushes that succeeded; failed and invalid ones are not among them."),
    _io("zone_appends_completed_total", "stats.zone_append_operations", "Zone appends that succeeded; failed and invalid ones are not among them.", zero=ZeroMeaning.UNUSED),
    _io("read_time_seconds_total", "stats.rd_total_time_ns", "Time spent on reads, including failed ones unless the disk has account-failed=off.", NS),
    _io("write_time_seconds_total", "stats.wr_total_time_ns", "Time spent on writes, including failed ones unless the disk has account-failed=off.", NS),
    _io("discard_time_seconds_total", "stats.unmap_total_time_ns", "Time spent on discards, including failed ones unless the disk has account-failed=off.", NS),
    _io("flush_time_seconds_total", "stats.flush_total_time_ns", "Time spent on flushes, including failed ones unless the disk has account-failed=off.", NS),
    _io("zone_append_time_seconds_total", "stats.zone_append_total_time_ns", "Time spent on zone appends, including failed ones unless the disk has account-failed=off.", NS, ZeroMeaning.UNUSED),
    _io("reads_merged_total", "stats.rd_merged", "Reads merged into another request."),
    _io("writes_merged_total", "stats.wr_merged", "Writes merged into another request."),
    _io("discards_merged_total", "stats.unmap_merged", "Discards merged into another request."),
    _io("zone_appends_merged_total", "stats.zone_append_merged", "Zone appends merged into another request.", zero=ZeroMeaning.UNUSED),
    _io("reads_failed_total", "stats.failed_rd_operations", "Reads that failed."),
    _io("writes_failed_total", "stats.failed_wr_operations", "Writes that failed."),
    _io("discards_failed_total", "stats.failed_unmap_operations", "Discards that failed."),
    _io("flushes_failed_total", "stats.failed_flush_operations", "Flushes that failed."),
    _io("zone_appends_failed_total", "stats.failed_zone_append_operations", "Zone appends that failed.", zero=ZeroMeaning.UNUSED),
    _io("reads_invalid_total", "stats.invalid_rd_operations", "Reads refused as invalid."),
    _io("writes_invalid_total", "stats.invalid_wr_operations", "Writes refused as invalid."),
    _io("discards_invalid_total", "stats.invalid_unmap_operations", "Discards refused as invalid."),
    _io("flushes_invalid_total", "stats.invalid_flush_operations", "Flushes refused as invalid."),
    _io("zone_appends_invalid_total", "stats.invalid_zone_append_operations", "Zone appends refused as invalid.", zero=ZeroMeaning.UNUSED),
    _io("idle_seconds", "stats.idle_time_ns", "Time since the last request; absent before the first.", NS),
)

_EDGES = "Latency of {} since the histogram was set; QEMU counts a value equal to a boundary in the bucket above it."
LATENCY = (
    _latency("read_latency_seconds", "stats.rd_latency_histogram", _EDGES.format("reads")),
    _latency("write_latency_seconds", "stats.wr_latency_histogram", _EDGES.format("writes")),
    _latency("flush_latency_seconds", "stats.flush_latency_histogram", _EDGES.format("flushes")),
    _latency("zone_append_latency_seconds", "stats.zone_append_latency_histogram", _EDGES.format("zone appends")),
)

INTERVALS = (
    _interval("read_latency_min_seconds", "min_rd_latency_ns", "Lowest latency of reads in the interval.", NS),
    _interval("read_latency_max_seconds", "max_rd_latency_ns", "Highest latency of reads in the interval.", NS),
    _interval("read_latency_avg_seconds", "avg_rd_latency_ns", "Mean latency of reads in the interval.", NS),
    _interval("write_latency_min_seconds", "min_wr_latency_ns", "Lowest latency of writes in the interval.", NS),
    _interval("write_latency_max_seconds", "max_wr_latency_ns", "Highest latency of writes in the interval.", NS),
    _interval("write_latency_avg_seconds", "avg_wr_latency_ns", "Mean latency of writes in the interval.", NS),
    _interval("flush_latency_min_seconds", "min_flush_latency_ns", "Lowest latency of flushes in the interval.", NS),
    _interval("flush_latency_max_seconds", "max_flush_latency_ns", "Highest latency of flushes in the interval.", NS),
    _interval("flush_latency_avg_seconds", "avg_flush_latency_ns", "Mean latency of flushes in the interval.", NS),
    _interval("zone_append_latency_min_seconds", "min_zone_append_latency_ns", "Lowest latency of zone appends in the interval.", NS, zero=ZeroMeaning.UNUSED),
    _interval("zone_append_latency_max_seconds", "max_zone_append_latency_ns", "Highest latency of zone appends in the interval.", NS, zero=ZeroMeaning.UNUSED),
    _interval("zone_append_latency_avg_seconds", "avg_zone_append_latency_ns", "Mean latency of zone appends in the interval.", NS, zero=ZeroMeaning.UNUSED),
    _interval("read_queue_depth_avg", "avg_rd_queue_depth", "Mean number of reads in flight in the interval.", type=float),
    _interval("write_queue_depth_avg", "avg_wr_queue_depth", "Mean number of writes in flight in the interval.", type=float),
    _interval("zone_append_queue_depth_avg", "avg_zone_append_queue_depth", "Mean number of zone appends in flight in the interval.", type=float, zero=ZeroMeaning.UNUSED),
)

STATE = (
    _own(Scope.DEVICE, "device_info", "block", "What the device is, and the active layer of its chain, even below a filter.", "state",
         labels=("qdev", "node_name", "driver", "file", "read_only", "removable", "cache_writeback", "cache_direct",
                 "cache_no_flush", "detect_zeroes", "throttle_group")),
    _own(Scope.DEVICE, "device_inserted", "inserted", "Whether the device has a medium; also 0 once QEMU has closed an image that it found corrupt.", "state", type=bool),
    _state("device_tray_open", "tray_open", "Whether the tray is open.", type=bool),
    _state("device_locked", "locked", "Whether the guest has locked the tray.", type=bool),
    _state("device_io_status", "io-status", "Whether an I/O error has stopped the device: 1 for the current state.", type=str, states=IO_STATES),
    _own(Scope.DEVICE, "device_backing_depth", "backing_depth", "Number of backing files below the active layer; absent once QEMU has closed the active layer as corrupt.", "state"),
    _own(Scope.DEVICE, "device_expected_backing_depth", "expected_backing_depth", "Number of backing files that the configuration expects below the active layer.", "state"),
    _state("write_threshold_bytes", "inserted.write_threshold", "A write beyond this offset raises an event. Of the root node only: libvirt sets it on the storage node, which query-block does not report.", zero=ZeroMeaning.UNSET),
)

THROTTLE = (
    _throttle("total_bytes_per_second", "bps", "Limit of all I/O."),
    _throttle("read_bytes_per_second", "bps_rd", "Limit of reads."),
    _throttle("write_bytes_per_second", "bps_wr", "Limit of writes."),
    _throttle("total_operations_per_second", "iops", "Limit of all requests."),
    _throttle("read_operations_per_second", "iops_rd", "Limit of read requests."),
    _throttle("write_operations_per_second", "iops_wr", "Limit of write requests."),
    _throttle("total_bytes_per_second_burst", "bps_max", "Limit of all I/O in a burst."),
    _throttle("read_bytes_per_second_burst", "bps_rd_max", "Limit of reads in a burst."),
    _throttle("write_bytes_per_second_burst", "bps_wr_max", "Limit of writes in a burst."),
    _throttle("total_operations_per_second_burst", "iops_max", "Limit of all requests in a burst."),
    _throttle("read_operations_per_second_burst", "iops_rd_max", "Limit of read requests in a burst."),
    _throttle("write_operations_per_second_burst", "iops_wr_max", "Limit of write requests in a burst."),
    _throttle("total_bytes_per_second_burst_length_seconds", "bps_max_length", "Longest burst of all I/O."),
    _throttle("read_bytes_per_second_burst_length_seconds", "bps_rd_max_length", "Longest burst of reads."),
    _throttle("write_bytes_per_second_burst_length_seconds", "bps_wr_max_length", "Longest burst of writes."),
    _throttle("total_operations_per_second_burst_length_seconds", "iops_max_length", "Longest burst of all requests."),
    _throttle("read_operations_per_second_burst_length_seconds", "iops_rd_max_length", "Longest burst of read requests."),
    _throttle("write_operations_per_second_burst_length_seconds", "iops_wr_max_length", "Longest burst of write requests."),
    _throttle("operation_size_bytes", "iops_size", "A request that is larger counts as several operations of this size."),
)

BITMAPS = (
    _bitmap("bytes", "count", "Bytes that the bitmap marks as dirty; absent if it is inconsistent."),
    _bitmap("granularity_bytes", "granularity", "Bytes that one bit represents."),
    _bitmap("recording", "recording", "Whether writes are recorded.", bool),
    _bitmap("busy", "busy", "Whether a job or export uses the bitmap.", bool),
    _bitmap("persistent", "persistent", "Whether the bitmap is stored in the image.", bool),
    _bitmap("inconsistent", "inconsistent", "Whether the bitmap was not saved and can only be removed.", bool),
)

_SHARED = " A layer that two disks share appears under both: take max by (vm, node_name) before a sum."
NODES = (
    _own(Scope.NODE, "info", "has_info", "Format and file of a node." + _SHARED, "layers",
         labels=("driver", "file", "backing_file", "backing_format", "encrypted", "compat")),
    _image("virtual_size_bytes", "virtual-size", "Size that the guest sees."),
    _image("allocated_bytes", "actual-size", "Bytes that the image takes on its storage; absent for a block device, for which QEMU does not know it." + _SHARED),
    _image("cluster_size_bytes", "cluster-size", "Size of a cluster."),
    _own(Scope.NODE, "internal_snapshots", "internal_snapshots", "Snapshots inside the image. [inserted.image.snapshots]", "layers"),
    _image("dirty", "dirty-flag", "Whether the image was not closed cleanly.", bool),
    _image("corrupt", "format-specific.data.corrupt", "Whether the image is marked corrupt.", bool),
    _node("write_highest_offset_bytes", "stats.wr_highest_offset", "Highest offset written since the node was opened."),
    _own(Scope.FILE, "storage_size_bytes", "size_bytes", "Size of the file system or block device that holds the image, or its data file if it has one." + _SHARED, "layers"),
    _own(Scope.FILE, "storage_available_bytes", "available_bytes", "Bytes available on the file system that holds the image, or its data file if it has one." + _SHARED, "layers"),
    _own(Scope.FILE, "file_name_valid", "name_valid", "Whether the name that QEMU reports leads any process on its host to the file that QEMU has open (1). 0: removed or replaced since, snapshot=on, /dev/fdset/N, or a relative name.", "layers"),
    _node("discards_completed_total", "driver-specific.discard-nb-ok", "Discards that the file accepted; absent before the first.", ZeroMeaning.UNUSED),
    _node("discards_failed_total", "driver-specific.discard-nb-failed", "Discards that the file refused; absent before the first.", ZeroMeaning.UNUSED),
    _node("discarded_bytes_total", "driver-specific.discard-bytes-ok", "Bytes discarded in the file; absent before the first.", ZeroMeaning.UNUSED),
    _node("nvme_completion_errors_total", "driver-specific.completion-errors", "NVMe completions with an error."),
    _node("nvme_aligned_accesses_total", "driver-specific.aligned-accesses", "NVMe accesses that were aligned."),
    _node("nvme_unaligned_accesses_total", "driver-specific.unaligned-accesses", "NVMe accesses that needed a bounce buffer."),
)
#: QEMU before 2.5 counted neither discards, nor zone appends, nor failed requests.
_OLD_FIELDS = re.compile(r"stats\.(\w+_)?(rd|wr|flush)_(bytes|operations|total_time_ns|merged)")
_OF_FAILED = re.compile(r"(; failed|, including).*")
LAYER_IO = tuple(
    _row(Scope.LAYER, "layer_io", row.name.removeprefix(Scope.DEVICE.prefix), row.path[-1],
         f"{_OF_FAILED.sub('.', row.text)} For each layer separately; only QEMU before 2.5 reports it.", "io", row.divisor, source="stats.")
    for row in IO if _OLD_FIELDS.fullmatch(row.field)
)

EXPORTS = (
    replace(_own(Scope.EXPORT, "info", "exists",
                 "A node that QEMU serves to others, up to --collector.topology.max-age ago. Reads and writes through it are in no device's counters: QEMU does not count them.",
                 "export", type=bool, labels=("type", "node_name")), field="query-block-exports"),
)

JOBS = (
    _job("offset_bytes", "offset", "Bytes processed so far. Reaching length_bytes does not mean that the job is ready."),
    _job("length_bytes", "len", "Bytes to process in total, as known now; it grows as the guest writes."),
    _job("speed_limit_bytes_per_second", "speed", "Speed limit; 0 means none."),
    _job("busy", "busy", "Whether the job is working at this instant.", bool),
    _job("paused", "paused", "Whether the job is paused, by a user or by an error.", bool),
    _job("ready", "ready", "Whether QEMU says that the job can be completed.", bool),
    _job("auto_finalize", "auto-finalize", "Whether the job finalizes itself, without waiting in the state pending.", bool),
    _job("auto_dismiss", "auto-dismiss", "Whether the job disappears by itself once it has ended.", bool),
    _job("actively_synced", "actively-synced", "Whether a mirror writes to both sides.", bool),
    _job("status", "status", "The state of the job: 1 for the current one.", str, JOB_STATES),
    _job("io_status", "io-status", "Whether an I/O error has stopped the job: 1 for the current state.", str, IO_STATES),
    _own(Scope.JOB, "info", "job", "Layers that the job works on, from top down to base, and its error; empty if not known.", "jobs",
         labels=("top", "base", "error")),
    _own(Scope.JOB, "progress_ratio", "progress_ratio", "Share of its work that a job has done; only for jobs that are not block jobs. [current-progress, total-progress]", "jobs", type=float),
    _own(Scope.JOB, "first_seen_timestamp_seconds", "first_seen_timestamp_seconds", "When this process first saw the job.", "jobs", type=float),
    _own(Scope.JOB, "last_progress_timestamp_seconds", "last_progress_timestamp_seconds", "When this process last saw the offset change, or first saw the job.", "jobs", type=float),
    _own(Scope.JOB, "ready_timestamp_seconds", "ready_timestamp_seconds", "When this process first saw the job ready.", "jobs", type=float),
)

_UNDONE = "neither is ever counted as a success."
OUTCOMES = (
    _own(Scope.OUTCOME, "completed_total", "completed", "Jobs that completed; a commit of the active layer counts only if the backing chain shows it and no other job can have caused that.", "jobs"),
    _own(Scope.OUTCOME, "failed_total", "failed", "Jobs that ended with an error.", "jobs"),
    _own(Scope.OUTCOME, "cancelled_total", "cancelled", "Jobs that were cancelled; a commit that was ready counts only if the layer that it was to merge is still in the chain.", "jobs"),
    _own(Scope.OUTCOME, "unverified_total", "unverified", "Jobs that may have completed, without proof: the chain of a commit could not be read or may result from another job, or the end was not observed; or a job that is not a block job did not succeed, and its error could not be read. See also vanished: " + _UNDONE, "jobs"),
    _own(Scope.OUTCOME, "vanished_total", "vanished", "Jobs that disappeared without a final status. See also unverified: " + _UNDONE, "jobs"),
    _own(Scope.FINISHED, "last_finished_timestamp_seconds", "timestamp_seconds", "When this process learnt of the last such end of a job.", "jobs", type=float),
    _own(Scope.LAST_ERROR, "last_error_info", "error", "The error of the last job that failed, without credentials.", "jobs", labels=("error",)),
)

EVENTS = (
    _event(Scope.IO_ERROR, "io_errors_total", "count", "BLOCK_IO_ERROR", "I/O errors of the guest's requests, by the action that QEMU took."),
    _event(Scope.DEVICE_EVENT, "write_thresholds_exceeded_total", "write_thresholds_exceeded", "BLOCK_WRITE_THRESHOLD", "Writes beyond the configured threshold."),
    _event(Scope.DEVICE_EVENT, "images_corrupted_total", "images_corrupted", "BLOCK_IMAGE_CORRUPTED", "Times that an image was found corrupt."),
    _event(Scope.DEVICE_EVENT, "quorum_errors_total", "quorum_errors", "QUORUM_REPORT_BAD", "Times that a child of a quorum failed or was outvoted; absent before the first."),
    replace(_event(Scope.JOB_ERROR, "errors_total", "count", "BLOCK_JOB_ERROR", "I/O errors of a job, by the action that QEMU took; ignore means that the job tries again, indefinitely if need be."), collector="jobs"),
    _event(Scope.VM_EVENT, "events_total", "count", "event", "Events received while this process was connected; unknown names are counted as other. A series begins with the first event of its name."),
)

EXPORTER = (
    _own(Scope.EXPORTER, "build_info", "", "Version of the exporter and of Python.", labels=("version", "python_version")),
    _own(Scope.EXPORTER, "targets", "targets", "Number of sockets that are collected."),
    _own(Scope.EXPORTER, "targets_up", "targets_up", "Number of sockets whose virtual machine answered in this scrape."),
    _own(Scope.EXPORTER, "target_conflicts", "target_conflicts", "Number of sockets left out because another one has the same name."),
    _own(Scope.EXPORTER, "qmp_commands_total", "commands", "Commands sent to all virtual machines.", labels=("command",)),
    _own(Scope.EXPORTER, "qmp_errors_total", "errors", "Error replies by class.", labels=("command", "class")),
    _own(Scope.EXPORTER, "actions_total", "actions", "Requests to change a virtual machine, and changes that the exporter makes on its own, if enabled.", labels=("action", "result")),
    _own(Scope.EXPORTER, "config_last_reload_successful", "reload_successful", "Whether the last reload of the configuration succeeded.", type=bool),
)
# fmt: on

METRICS = (
    *VM, *IO, *LATENCY, *INTERVALS, *STATE, *THROTTLE, *BITMAPS, *NODES, *LAYER_IO, *EXPORTS, *JOBS, *OUTCOMES, *EVENTS,
    *EXPORTER,
)  # fmt: skip

#: Named groups of metrics that `--no-collector.NAME` turns off, with their content.
COLLECTORS = {
    "io": "I/O counters of devices",
    "latency": "latency histograms",
    "intervals": "interval statistics",
    "state": "state of devices",
    "throttle": "throttle limits",
    "bitmaps": "dirty bitmaps",
    "layers": "nodes of the backing chains",
    "export": "nodes that QEMU serves to others",
    "jobs": "jobs, and how they ended",
    "events": "I/O errors and other events",
}
