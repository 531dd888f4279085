"""The exposition before judges that are not ours: promtool, Prometheus, and its client's parsers."""

from __future__ import annotations

import json
import re
import subprocess
import threading
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from prometheus_client import parser
from prometheus_client.openmetrics import parser as openmetrics_parser

from tests.conftest import samples
from tests.e2e.lab import (
    MIB,
    PATIENCE_SECONDS,
    Disk,
    Exporter,
    Lab,
    blockdev,
    drive,
    plug,
    tool,
    wait_until,
)
from tests.e2e.prometheus import Prometheus
from tests.e2e.reading import names

OPENMETRICS = "application/openmetrics-text;version=1.0.0"
#: What a file name may hold and a label has to escape.
ODD = 'odd "name" \\ {é=1}'
#: A family of each kind of thing, with what there is of it in this VM.
FAMILIES = (
    "qemu_vm_up",
    "qemu_vm_info",
    "qemu_vm_status",
    "qemu_block_written_bytes_total",
    "qemu_block_write_latency_seconds_bucket",
    "qemu_block_interval_write_latency_max_seconds",
    "qemu_block_device_info",
    "qemu_block_device_io_status",
    "qemu_block_throttle_write_bytes_per_second",
    "qemu_block_throttle_write_bytes_per_second_burst_length_seconds",
    "qemu_block_dirty_bitmap_bytes",
    "qemu_block_node_info",
    "qemu_block_node_allocated_bytes",
    "qemu_block_node_storage_available_bytes",
    "qemu_block_job_offset_bytes",
    "qemu_block_job_info",
    "qemu_exporter_build_info",
    "process_resident_memory_bytes",
)


@pytest.fixture(scope="module")
def exporter(shared_lab: Lab) -> Exporter:
    """An exporter that has something to say in every family that QEMU 7.2 can fill."""
    lab = shared_lab
    throttled = {"driver": "throttle", "node-name": "held", "throttle-group": "group"}
    vm = lab.qemu(
        "vm",
        *drive("disk0", lab.image(ODD), "throttling.bps-write=1048576", "stats-intervals.0=3600"),
        *plug("front", "disk0"),
        *blockdev("virtio-disk1", *lab.chain("chain", 3)),
        *("-object", "throttle-group,id=group,x-bps-write=1000000,x-bps-write-max=2000000"),
        *blockdev("virtio-disk2", lab.image("plain")),
        *("-blockdev", json.dumps({**throttled, "file": below(lab)})),
        *plug("virtio-disk3", "held"),
        *("-device", "virtio-scsi-pci", "-device", "scsi-cd,id=cd0"),
        machine="pc",
    )
    vm.run("block-dirty-bitmap-add", {"node": "disk0", "name": "backup", "granularity": 65536})
    path = "/machine/peripheral/front/virtio-backend"
    vm.run("block-latency-histogram-set", {"id": path, "boundaries": [1000, 1000000, 10**9]})
    Disk(vm, "disk0").write(0, MIB)
    commit = {"device": "virtio-disk1-0", "job-id": "merge", "speed": 1}
    vm.run("block-commit", commit)
    vm.run("blockdev-snapshot-internal-sync", {"device": "virtio-disk2-0", "name": "before"})
    return lab.exporter()


def below(lab: Lab) -> dict[str, Any]:
    """Return a node for an image that is throttled by a filter."""
    file = {"driver": "file", "filename": str(lab.image("throttled"))}
    return {"driver": "qcow2", "file": file}


class TextProxy(ThreadingHTTPServer):
    """Asks for the text format, whatever it is asked for: this Prometheus cannot be told to."""

    daemon_threads = True

    def __init__(self, url: str) -> None:
        super().__init__(("127.0.0.1", 0), _Forward)
        self.url = url


class _Forward(BaseHTTPRequestHandler):
    server: TextProxy

    def do_GET(self) -> None:
        request = urllib.request.Request(
            self.server.url + self.path,
            headers={**dict(self.headers), "Accept": "text/plain;version=0.0.4"},
        )
        with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
            body = answer.read()
        self.send_response(200)
        for name in ("Content-Type", "Content-Encoding"):
            if value := answer.headers.get(name):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def text_proxy(url: str) -> Iterator[str]:
    with TextProxy(url) as proxy:
        thread = threading.Thread(target=proxy.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{proxy.server_port}"
        finally:
            proxy.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def prometheus(shared_lab: Lab, exporter: Exporter) -> Iterator[Prometheus]:
    """A Prometheus that has scraped both formats a few times."""
    with text_proxy(exporter.url) as proxied:
        jobs = {"openmetrics": exporter.url.removeprefix("http://"), "text": proxied}
        # A second may be too short for a scrape on a machine that is busy, and none is to fail.
        unhurried = {"scrape_interval": "5s", "scrape_timeout": "5s"}
        judge = Prometheus(shared_lab.folder, jobs, settings_of=dict.fromkeys(jobs, unhurried))
        try:
            wait_until(lambda: judge.has_scraped(3), "three scrapes of each job")
            yield judge
        finally:
            judge.kill()


def flat(families: Iterable[Any]) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Return each sample of a parser's families, without those that change by the clock."""
    found = {}
    for family in families:
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found, key
            if sample.name.startswith(("qemu_vm", "qemu_block")):
                found[key] = sample.value
    return found


def test_there_is_something_to_judge(exporter: Exporter) -> None:
    """Every kind of family is there, the odd name among the labels."""
    text = exporter.metrics()
    assert set(FAMILIES) - names(text) == set()
    assert [sample for sample in samples(text) if '/odd \\"name\\" \\\\ {é=1}.qcow2"' in sample]


def test_promtool_finds_nothing(exporter: Exporter) -> None:
    """Neither an error nor a remark of its linter."""
    check = subprocess.run(
        [tool("promtool"), "check", "metrics"],
        input=exporter.metrics(),
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert (check.returncode, check.stdout, check.stderr) == (0, "", "")


def test_both_formats_say_the_same_to_the_clients_parsers(exporter: Exporter) -> None:
    """Every sample of one is in the other, with its value."""

    def both() -> Any:
        text = exporter.get(Accept="text/plain;version=0.0.4")
        openmetrics = exporter.get(Accept=OPENMETRICS)
        clock = re.compile(r"^qemu_vm_scrape_duration_seconds.*$", re.MULTILINE)
        # Two reads show the same sweep if they are not a second apart.
        return clock.findall(text) == clock.findall(openmetrics) and (text, openmetrics)

    text, openmetrics = wait_until(both, "two reads of one sweep")
    assert openmetrics.endswith("# EOF\n")
    by_text = flat(parser.text_string_to_metric_families(text))
    by_openmetrics = flat(openmetrics_parser.text_string_to_metric_families(openmetrics))
    assert by_text == by_openmetrics
    assert len(by_text) > 250
    odd = f"/{ODD}.qcow2"
    assert any(dict(labels).get("file", "").endswith(odd) for _, labels in by_text)


def test_openmetrics_knows_units_and_infos(exporter: Exporter) -> None:
    """What the text format cannot say."""
    body = exporter.get(Accept=OPENMETRICS)
    families = {each.name: each for each in openmetrics_parser.text_string_to_metric_families(body)}
    kinds = {
        name: (families[name].type, families[name].unit)
        for name in (
            "qemu_vm",
            "qemu_block_written_bytes",
            "qemu_block_write_latency_seconds",
            "qemu_block_job_offset_bytes",
        )
    }
    assert kinds == {
        "qemu_vm": ("info", ""),
        "qemu_block_written_bytes": ("counter", "bytes"),
        "qemu_block_write_latency_seconds": ("histogram", "seconds"),
        "qemu_block_job_offset_bytes": ("gauge", "bytes"),
    }


def test_prometheus_is_content_with_both_formats(prometheus: Prometheus) -> None:
    """Up in each scrape, without an error, and each in the format that was meant."""
    assert prometheus.query("min_over_time(up[1h])") == {"openmetrics": 1, "text": 1}
    targets = prometheus.api("targets")["activeTargets"]
    assert [(each["health"], each["lastError"]) for each in targets] == [("up", "")] * 2
    kinds = {
        job: {
            each["metric"]: each["type"]
            for each in prometheus.api("targets/metadata", match_target=f'{{job="{job}"}}')
        }
        for job in ("openmetrics", "text")
    }
    assert kinds["openmetrics"]["qemu_vm"] == "info"
    assert kinds["text"]["qemu_vm_info"] == "gauge"
    assert kinds["text"]["qemu_block_written_bytes_total"] == "counter"


def test_prometheus_logs_nothing_above_info(prometheus: Prometheus) -> None:
    """No duplicate, no sample out of order, nothing that it could not parse."""
    lines = prometheus.said().splitlines()
    loud = [line for line in lines if not re.search(r"\blevel=info\b", line, re.IGNORECASE)]
    assert lines
    assert not loud


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_can_be_queried(prometheus: Prometheus, family: str) -> None:
    """From either format the same series; build info and the like too."""
    counts = prometheus.query(f"count by (job) ({family})")
    assert counts.keys() == {"openmetrics", "text"}
    assert counts["openmetrics"] == counts["text"] > 0


def test_prometheus_has_the_values_that_qemu_has(prometheus: Prometheus, shared_lab: Lab) -> None:
    """Through the whole way, by the queries that people write."""
    disk = Disk(shared_lab.vms["vm"], "disk0")
    disk.write(8 * MIB, 3 * 4096)
    expected = disk.stats["wr_bytes"]
    assert expected == MIB + 3 * 4096
    query = 'qemu_block_written_bytes_total{device="disk0"}'
    both = {"openmetrics": float(expected), "text": float(expected)}
    wait_until(lambda: prometheus.query(query) == both, "the new bytes in both jobs")
    buckets = "qemu_block_write_latency_seconds_bucket"
    assert prometheus.query(f'{buckets}{{le="+Inf"}}') == {"openmetrics": 2, "text": 2}
    quantile = f"histogram_quantile(0.9, sum by (job, le) ({buckets}))"
    assert prometheus.query(quantile).keys() == {"openmetrics", "text"}
    job = 'qemu_block_job_speed_limit_bytes_per_second{job_id="merge",device="virtio-disk1"}'
    assert prometheus.query(job) == {"openmetrics": 1, "text": 1}
    limits = 'qemu_block_throttle_write_bytes_per_second{job="text"}'
    assert prometheus.query(limits, by="device") == {"disk0": MIB, "virtio-disk3": 1000000}
    files = 'count by (file) (qemu_block_device_info{device="disk0",job="openmetrics"})'
    assert set(prometheus.query(files, by="file")) == {str(shared_lab.folder / f"{ODD}.qcow2")}


def test_prometheus_takes_every_sample(prometheus: Prometheus) -> None:
    """As many as were scraped were added; the formats differ by none."""

    def same() -> dict[str, float] | None:
        scraped = prometheus.query("scrape_samples_scraped")
        return scraped if scraped["openmetrics"] == scraped["text"] else None

    # The first command of a kind is a sample more, and one of them is scraped before the other.
    scraped = wait_until(same, "as many of each")
    assert prometheus.query("scrape_samples_post_metric_relabeling") == scraped
