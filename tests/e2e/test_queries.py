"""Every query that is shipped, asked of a real Prometheus about real QEMUs: it has an answer.

The lab has something of everything that a panel, a rule or an alert asks about. What stands in a
dashboard is asked as Grafana asks it: a moment for tables and single numbers, a range for graphs.
"""

from __future__ import annotations

import json
import math
import re
import signal
import struct
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from exporter.metrics.table import METRICS
from tests.dashboards import FILES, Query, filled, load, queries
from tests.e2e.faults import ONCE, by_blockdev, file_node
from tests.e2e.lab import (
    MIB,
    PATIENCE_SECONDS,
    Disk,
    Exporter,
    Lab,
    Memory,
    Qemu,
    blockdev,
    drive,
    plug,
    tool,
    wait_until,
)
from tests.e2e.prometheus import JOB, Prometheus, shipped_rules, shortened, write_rules
from tests.e2e.reading import value
from tests.e2e.test_targets import WRITER
from tests.promql import kept

#: Half an hour of a rule is 15 seconds.
SHORTER = 120
#: Everything in this lab is younger than an hour and smaller than a TiB.
_ANY = (0.0, 1e9)
RANGES = {
    "none": _ANY,
    "short": _ANY,
    "bytes": (0.0, 2.0**40),
    "binBps": (0.0, 1e11),
    "iops": (0.0, 1e6),
    "reqps": (0.0, 1e6),
    "percentunit": (0.0, 1.0),
    # What the exporter saw during a scrape is newer than the scrape's time.
    "s": (-2.0, 3600.0),
}
_NOBODY = {"manager"}
#: Labels that may be empty in this lab: VMs that nobody manages, and a job that failed too soon for
#: its disk to be known.
UNKNOWN = {
    "qemu-block-fleet: VMs: C": _NOBODY,
    "qemu-block-vm: The VM: A": _NOBODY,
    "qemu-block-jobs: Last errors: A": {"device"},
}
#: Alerts on what there is in this lab, with labels that they have.
ALERTS = {
    "QemuBlockJobReady": {"vm": "jobs", "device": "ready", "job_id": "job-ready"},
    "QemuBlockJobIoError": {"vm": "jobs", "device": "stopped", "job_id": "job-stopped"},
    "QemuBlockJobRetrying": {"vm": "jobs", "device": "retrying", "job_id": "job-retrying"},
    "QemuBlockJobPaused": {"vm": "jobs", "device": "paused", "job_id": "job-paused"},
    "QemuBlockJobFailed": {"vm": "jobs", "job_type": "commit", "result": "failed"},
    "QemuBlockJobVanished": {"vm": "passing", "device": "disk0", "result": "vanished"},
    "QemuBlockChainTooDeep": {"vm": "images", "device": "deep"},
    "QemuBlockOverlayAlmostFull": {"vm": "images", "device": "whole"},
    "QemuBlockStorageAlmostFull": {"vm": "images", "device": "cramped"},
    "QemuBlockQuorumDegraded": {"vm": "voting", "device": "disk0"},
    "QemuBlockBitmapInconsistent": {"vm": "crashed", "device": "disk0", "bitmap": "unsaved"},
    "QemuBlockImageCorrupt": {"vm": "damaged", "device": "disk0"},
    "QemuBlockImageUnnamed": {"vm": "images", "device": "temporary"},
    "QemuVmPausedByIoError": {"vm": "full", "device": "virtio-disk0", "status": "nospace"},
    "QemuBlockIoFailed": {"vm": "ignoring", "device": "virtio-disk0"},
    "QemuVmUnreachable": {"vm": "gone"},
    "QemuBlockExporterTargetConflict": {"job": JOB},
    "QemuBlockExporterConfigRejected": {"job": JOB},
}
#: Disks with a chain of two layers -> the job on each, by what comes of it.
JOBS: dict[str, dict[str, Any]] = {
    "moving": {"command": "block-stream", "speed": MIB // 4},
    "pending": {"command": "block-stream", "auto-finalize": False},
    "ready": {},
    "paused": {"speed": 1},
    "backup": {"command": "drive-backup", "sync": "full", "speed": 1},
    "retrying": {"command": "blockdev-backup", "sync": "full", "on-target-error": "ignore"},
    "completed": {},
    "cancelled": {"speed": 1},
    "stopped": {"on-error": "stop"},
    "failed": {"on-error": "report"},
    "concluded": {"on-error": "report", "auto-dismiss": False},
}
#: A selector of the exporter's series, or of Prometheus's own or recorded ones.
SELECTOR = re.compile(r"\b((?:\w+:)?qemu_[\w:]+|up|scrape_duration_seconds)\b(\{[^}]*\})?")
OF_TARGET = {"job", "instance"}
#: The labels of a recorded series, by the first part of its name.
LEVELS = {
    "qemu_block_threshold": set(),
    "instance": OF_TARGET,
    "vm_device": OF_TARGET | {"vm", "device", "job_type", "result"},
    "vm_job": OF_TARGET | {"vm", "device", "job_id", "job_type", "state", "status"},
    "vm_throttle_group": OF_TARGET | {"vm", "throttle_group"},
}
#: What a recorded number is, by a part of its name, where an hour or a share bounds it.
UNITS = {
    "latency_seconds:": "s",
    ":ratio": "percentunit",
    "_ratio": "percentunit",
    "timestamp": "timestamp",
}


class Watched(NamedTuple):
    """A Prometheus that has watched the lab since a time."""

    prometheus: Prometheus
    since: float
    #: When everything must have an answer: what has none costs all of them no more than this.
    until: float

    def wait(self, holds: Callable[[], Any], what: str) -> Any:
        """Return the first true value of `holds`."""
        while not (value := holds()):
            assert time.time() < self.until, f"no answer: {what}"
            time.sleep(0.2)
        return value

    def answer(self, query: Query) -> list[dict[str, Any]]:
        """Return what a query of a panel gives now, or at every moment so far if it is a graph."""
        expression = filled(query.expr, __rate_interval="5m")
        if query.target["instant"]:
            return self.prometheus.series(expression)
        span = {"start": str(self.since), "end": str(time.time()), "step": "1"}
        found = self.prometheus.api("query_range", query=expression, **span)["result"]
        return [
            {"metric": each["metric"], "value": moment}
            for each in found
            for moment in each["values"]
        ]


def guest(lab: Lab, name: str, error: int, *on_error: str) -> Qemu:
    """Start a VM whose guest writes when it runs, and whose first write fails."""
    image = lab.folder / f"{name}.raw"
    image.write_bytes(WRITER.ljust(MIB, b"\0"))
    file = file_node(image, {**ONCE, "errno": error})
    node = {"driver": "raw", "node-name": "guest", "file": file}
    plugged = ["-device", ",".join(["virtio-blk-pci,id=virtio-disk0,drive=guest", *on_error])]
    return lab.qemu(name, "-blockdev", json.dumps(node), *plugged, machine="pc")


def corrupt(image: Path) -> Path:
    """Let an image say that its first cluster is where none can be."""
    with image.open("r+b") as file:
        file.seek(40)
        (level1,) = struct.unpack(">Q", file.read(8))
        file.seek(level1)
        (level2,) = struct.unpack(">Q", file.read(8))
        at = level2 & 0x00FFFFFFFFFFFE00
        file.seek(at)
        (cluster,) = struct.unpack(">Q", file.read(8))
        file.seek(at)
        file.write(struct.pack(">Q", cluster + 512))
    return image


def voting(lab: Lab) -> Qemu:
    """Start a VM with a quorum, to one child of which the first write fails."""
    nodes: list[dict[str, Any]] = []
    for number in range(3):
        image = lab.folder / f"voting{number}.raw"
        image.write_bytes(bytes(MIB))
        file = file_node(image, {} if number else ONCE)
        nodes.append({"driver": "raw", "node-name": f"child{number}", "file": file})
    names = [node["node-name"] for node in nodes]
    nodes.append({"driver": "quorum", "node-name": "all", "vote-threshold": 2, "children": names})
    given = [part for node in nodes for part in ("-blockdev", json.dumps(node))]
    return lab.qemu("voting", *given, *plug("disk0", "all"), machine="pc")


def crashed(lab: Lab) -> list[str]:
    """Return the arguments for a disk whose bitmap a crash of QEMU has left unsaved."""
    image = lab.image("crashed")
    subprocess.run([tool("qemu-img"), "bitmap", "--add", image, "unsaved"], check=True)
    arguments = [*drive("disk0", image), *plug("front", "disk0")]
    lab.qemu("crash", *arguments, machine="pc").kill()
    lab.vms["crash"].socket.unlink()
    return arguments


def images_vm(lab: Lab) -> Qemu:
    """Start a VM with a chain that is too deep, an overlay that is full, and no room for a disk."""
    whole = lab.image("whole", 4 * MIB)
    overlay = lab.image("overlay", backing=whole)
    lab.keep(Memory(lab.folder / "little", 2))
    cramped = lab.image("little/cramped")
    for image, size in ((overlay, 56 * 65536), (cramped, 27 * 65536)):
        subprocess.run([tool("qemu-io"), "-c", f"write -q 0 {size}", image], check=True)
    return lab.qemu(
        "images",
        *blockdev("deep", *lab.chain("deep", 10)),
        *blockdev("whole", overlay, whole),
        *blockdev("cramped", cramped),
        *drive("temporary", lab.image("temporary"), "snapshot=on"),
        *plug("front", "temporary"),
        machine="pc",
    )


def disks_vm(lab: Lab) -> Qemu:
    """Start a VM with a deep chain, every kind of limit, a bitmap, statistics and thresholds."""
    total = ["throttling.bps-total=100000000", "throttling.iops-total=10000"]
    kinds = ("bps-read", "bps-write", "iops-read", "iops-write")
    apart = [f"throttling.{kind}=1000000" for kind in kinds]
    vm = lab.qemu(
        "disks",
        *drive("disk0", lab.chain("disk0", 3)[0], "stats-intervals.0=60", *total),
        *plug("front0", "disk0"),
        *drive("disk1", lab.image("disk1"), *apart),
        *plug("front1", "disk1"),
        *blockdev("virtio-disk2", lab.image("disk2")),
        machine="pc",
    )
    path = "/machine/peripheral/front0/virtio-backend"
    vm.run("block-latency-histogram-set", {"id": path, "boundaries": [10**6, 10**7, 10**9]})
    vm.run("block-dirty-bitmap-add", {"node": Disk(vm, "disk0").node_name, "name": "backup"})
    vm.run("blockdev-snapshot-internal-sync", {"device": "virtio-disk2-0", "name": "before"})
    for node, threshold in (("virtio-disk2-0", MIB), (Disk(vm, "disk1").node_name, 60 * MIB)):
        arguments = {"node-name": node, "write-threshold": threshold}
        vm.run("block-set-write-threshold", arguments)
    return vm


def use(vm: Qemu) -> None:
    """Read, write and flush as a guest does."""
    for name in ("disk0", "disk1", "virtio-disk2"):
        disk = Disk(vm, name)
        disk.write(2 * MIB, 4 * 65536)
        backend = f"-d {name}/virtio-backend" if name == "virtio-disk2" else name
        for command in ("aio_read 0 65536", "aio_flush"):
            assert vm.hmp(f'qemu-io {backend} "{command}"') == ""


def jobs_vm(lab: Lab) -> Qemu:
    """Start a VM with a disk for each of JOBS."""
    disks = []
    for name, job in JOBS.items():
        top, base = lab.chain(name, 2)
        if name == "moving":
            subprocess.run([tool("qemu-io"), "-c", f"write -q 0 {60 * MIB}", base], check=True)
        fault = ONCE if "on-error" in job else {}
        disks += by_blockdev(name, top, file_node(base, fault))
    return lab.qemu("jobs", *disks, *refusing(lab), machine="pc")


def refusing(lab: Lab) -> list[str]:
    """Return the arguments for a node that refuses every write, so many in a second.

    A backup of a newer QEMU has 64 of them on the way, and meets one error when all have failed.
    """
    image = lab.folder / "refusing.raw"
    image.write_bytes(bytes(64 * MIB))
    always = {"event": "none", "iotype": "write", "errno": 5}
    node = {
        "driver": "throttle",
        "node-name": "refusing",
        "throttle-group": "slow",
        "file": {"driver": "raw", "file": file_node(image, always)},
    }
    group = "throttle-group,id=slow,x-iops-total=200"
    return ["-object", group, "-blockdev", json.dumps(node)]


def start_jobs(vm: Qemu) -> None:
    """Start each job on its disk."""
    for name, options in JOBS.items():
        start(vm, name, **options)
    vm.run("block-job-pause", {"device": "job-paused"})


def start(vm: Qemu, device: str, command: str = "block-commit", **options: Any) -> None:
    """Start a job that is named after its disk."""
    if command == "drive-backup":
        options["target"] = str(vm.socket.with_name(f"copy-of-{device}.qcow2"))
    elif command == "blockdev-backup":
        options["target"] = "refusing"
    vm.run(command, {"device": f"{device}-0", "job-id": f"job-{device}", **options})


def _is_gone(vm: Qemu, job: str) -> bool:
    return vm.job(job) is None


def end_jobs(vm: Qemu) -> None:
    """Complete one job, cancel another, and see that the third has failed."""
    wait_until(lambda: vm.job("job-completed")["ready"], "ready")
    vm.run("block-job-complete", {"device": "job-completed"})
    vm.run("block-job-cancel", {"device": "job-cancelled"})
    for name in ("completed", "cancelled", "failed"):
        wait_until(partial(_is_gone, vm, f"job-{name}"), f"{name} is gone")


def exporter_of_all(lab: Lab) -> Exporter:
    """Start an exporter of all VMs: of those in `shared` on a socket that others use too."""
    config = lab.folder / "config.yml"
    shared = {"name": "shared", "sockets": [f"{lab.folder}/shared/*.sock"]}
    plain = {"name": "plain", "sockets": [f"{lab.folder}/*.sock"]}
    # JSON is YAML.
    config.write_text(json.dumps({"groups": [{**shared, "connection": "per-scrape"}, plain]}))
    return lab.exporter(f"--config.file={config}", sockets=False)


def start_vms(lab: Lab) -> None:
    """Start all VMs; in none of them has anything happened yet."""
    (lab.folder / "shared").mkdir()
    disks_vm(lab)
    jobs_vm(lab)
    images_vm(lab)
    voting(lab)
    guest(lab, "full", 28)
    guest(lab, "ignoring", 5, "werror=ignore")
    image = corrupt(lab.chain("corrupt", 1)[0])
    lab.qemu("damaged", *drive("disk0", image), machine="pc")
    lab.qemu("crashed", *crashed(lab), machine="pc")
    lab.qemu("gone", *drive("disk0", lab.image("gone")))
    lab.qemu("shared/passing", *blockdev("disk0", *lab.chain("passing", 2)), machine="pc")
    # A second VM of the name `disks`.
    lab.qemu("shared/disks")
    # It does not know query-status.
    lab.storage_daemon("daemon")


def unheard(exporter: Exporter, vm: Qemu) -> None:
    """Cancel the job of a VM that is left after each scrape, while nobody is connected to it."""

    def is_done() -> bool:
        with exporter.stopped():
            if vm.has_client:
                return False
            vm.run("block-job-cancel", {"device": "job-disk0"})
            wait_until(lambda: vm.job("job-disk0") is None, "the job is gone")
            return True

    wait_until(is_done, "nobody hears of it")


def let_it_happen(lab: Lab, exporter: Exporter) -> None:
    """Do what the exporter has to be there for: what events tell, and what was and is not."""
    vms = lab.vms
    vms["gone"].kill()
    start_jobs(vms["jobs"])
    start(vms["shared/passing"], "disk0", speed=1)
    vms["full"].run("cont")
    vms["ignoring"].run("cont")
    assert vms["damaged"].hmp('qemu-io disk0 "aio_read 0 65536"') == ""
    assert vms["voting"].hmp('qemu-io -d disk0/virtio-backend "aio_write 0 64k"') == ""
    exporter.until(lambda text: value(text, "qemu_block_job_offset_bytes", vm="passing"))
    unheard(exporter, vms["shared/passing"])
    end_jobs(vms["jobs"])
    wait_until(lambda: vms["full"].run("query-status")["status"] == "io-error", "the guest writes")
    ignoring = Disk(vms["ignoring"], "virtio-disk0")
    wait_until(lambda: ignoring.stats["wr_operations"], "the other guest writes")
    # It would write for ever.
    vms["ignoring"].run("stop")


def reject_the_configuration(lab: Lab, exporter: Exporter) -> None:
    (lab.folder / "config.yml").write_text("groups: 1")
    exporter.signal(signal.SIGHUP)


@pytest.fixture(scope="module")
def watched(shared_lab: Lab) -> Watched:
    """A Prometheus that has seen everything happen."""
    lab = shared_lab
    start_vms(lab)
    exporter = exporter_of_all(lab)
    since = time.time()
    target = {JOB: exporter.url.removeprefix("http://")}
    judge: Prometheus = lab.keep(Prometheus(lab.folder, target, write_rules(lab.folder, SHORTER)))
    wait_until(lambda: judge.has_scraped(3), "three scrapes")
    let_it_happen(lab, exporter)
    reject_the_configuration(lab, exporter)
    for scrapes in (10, 13, 16):
        use(lab.vms["disks"])
        wait_until(partial(judge.has_scraped, scrapes), "more scrapes")
    return Watched(judge, since, until=time.time() + PATIENCE_SECONDS)


def unit_of(query: Query) -> str:
    """Return the unit that a panel shows the values of a query in."""
    fields = query.panel["fieldConfig"]
    unit = str(fields["defaults"]["unit"])
    if query.panel["type"] != "table":
        return unit
    alone = len(query.panel["targets"]) == 1
    column = "Value" if alone else f"Value #{query.target['refId']}"
    organize = query.panel["transformations"][-1]["options"]
    shown = organize["renameByName"].get(column)
    for override in fields["overrides"]:
        if override["matcher"] == {"id": "byName", "options": shown}:
            for each in override["properties"]:
                unit = each["value"] if each["id"] == "unit" else unit
    return unit


def fits(unit: str, number: float) -> bool:
    """Whether a number can be one of a unit, in this lab."""
    if unit in {"timestamp", "dateTimeFromNow"}:
        return abs(number / (1 if unit == "timestamp" else 1000) - time.time()) < 3600
    lowest, highest = RANGES[unit]
    return lowest <= number <= highest


def known_labels() -> dict[str, set[str]]:
    """Return the labels of every series in the table, by its name."""
    found = {}
    for metric in METRICS:
        more = {"status"} if metric.states else set()
        more |= {"le"} if metric.kind == "histogram" else set()
        name = metric.name + ("_bucket" if metric.kind == "histogram" else "")
        found[name] = {*metric.labels, *metric.scope.labels, *more, *OF_TARGET}
    return found


KNOWN = known_labels()


@pytest.mark.parametrize("query", queries(), ids=lambda query: query.where)
def test_a_query_of_a_panel_has_an_answer(watched: Watched, query: Query) -> None:
    """Series with the labels that it keeps and its legend names, and numbers of its panel's unit."""
    answer = watched.wait(lambda: watched.answer(query), query.where)

    every = {label for labels in KNOWN.values() for label in labels}
    shown = {label for each in answer for label, text in each["metric"].items() if text}
    keeps = kept(query.expr)
    if keeps is None:
        assert shown - {"__name__"} <= every
    elif re.match(r"(sum|max|min)\(", query.expr):
        assert shown == set()
    else:
        used_up = {"le"} if "histogram_quantile" in query.expr else set()
        sure = keeps - used_up - UNKNOWN.get(query.where, set())
        assert sure <= shown <= keeps - used_up
    assert set(re.findall(r"{{(\w+)}}", query.target.get("legendFormat", ""))) <= shown
    numbers = [float(each["value"][1]) for each in answer]
    # A percentile of no requests.
    numbers = [each for each in numbers if not math.isnan(each)]
    unit = unit_of(query)
    assert numbers
    assert [each for each in numbers if not fits(unit, each)] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_variable_of_a_dashboard_has_values(watched: Watched, path: Path) -> None:
    """To choose from."""
    for variable in load(path)["templating"]["list"][1:]:
        match = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
        assert match
        wanted = {"match[]": filled(match[1])}
        values = watched.prometheus.api(f"label/{match[2]}/values", **wanted)
        assert [each for each in values if each], variable["name"]


@pytest.mark.parametrize(
    "rule", shipped_rules("record"), ids=lambda rule: f"{rule['record']} {rule.get('labels', '')}"
)
def test_a_rule_records_something(watched: Watched, rule: dict[str, Any]) -> None:
    """With the labels that the first part of its name says, and a number of its unit."""
    name, own = rule["record"], rule.get("labels", {})
    matchers = ",".join(f'{label}="{text}"' for label, text in own.items())
    query = f"max_over_time({name}{{{matchers}}}[1h])"
    found = watched.wait(lambda: watched.prometheus.series(query), name)

    expected = LEVELS[name.partition(":")[0]]
    for each in found:
        labels = {label for label, text in each["metric"].items() if text} - own.keys()
        assert labels <= expected
        # A job that is on no disk that is known, a group that is of no VM.
        assert expected & {"vm", "instance"} <= labels
    numbers = [float(each["value"][1]) for each in found]
    unit = next((unit for word, unit in UNITS.items() if word in name), None)
    assert [each for each in numbers if math.isnan(each) or (unit and not fits(unit, each))] == []


@pytest.mark.parametrize(
    "rule",
    [*shipped_rules("record"), *shipped_rules("alert")],
    ids=lambda rule: f"{rule.get('record') or rule['alert']} {rule.get('labels', '')}",
)
def test_what_a_rule_or_an_alert_looks_at_is_there(watched: Watched, rule: dict[str, Any]) -> None:
    """Every series that its expression selects; and the whole of it can be evaluated."""
    expression = shortened(rule, SHORTER)["expr"]
    watched.prometheus.series(expression)
    for selector in {"".join(match) for match in SELECTOR.findall(expression)}:
        query = f"last_over_time({selector}[1h])"
        watched.wait(partial(watched.prometheus.series, query), selector)


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_fires_about_what_is_wrong(watched: Watched, name: str) -> None:
    """Every one that this lab has a reason for, with the labels that say of what."""
    wanted = {"alertname": name, "alertstate": "firing", **ALERTS[name]}
    matchers = ",".join(f'{label}="{text}"' for label, text in wanted.items())
    watched.wait(
        lambda: watched.prometheus.series(f"max_over_time(ALERTS{{{matchers}}}[1h])"), name
    )


def test_prometheus_evaluates_every_rule_without_an_error(watched: Watched) -> None:
    """No many-to-many matching, no two series of one name."""
    groups = watched.prometheus.api("rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]

    assert len(rules) == len(shipped_rules("record")) + len(shipped_rules("alert"))
    assert [rule for rule in rules if rule["health"] != "ok" or rule.get("lastError")] == []


def test_prometheus_has_no_series_that_is_not_in_the_table(watched: Watched) -> None:
    """What can be asked for is what METRICS.md says, with the labels that it says."""
    found = watched.prometheus.api(
        "series", **{"match[]": f'{{job="{JOB}",__name__=~"qemu_[^:]+"}}'}
    )

    assert found
    for labels in found:
        assert labels.keys() - {"__name__"} <= KNOWN[labels["__name__"]]
