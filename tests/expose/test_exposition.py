"""What a scraper asks for, and what it is given."""

from __future__ import annotations

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from isal import isal_zlib
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from exporter.expose import exposition
from exporter.expose.exposition import scrape_seconds, wants_gzip, wants_openmetrics
from exporter.expose.plan import Plan
from exporter.model.state import VmState

#: What Prometheus 2 and 3 send.
PROMETHEUS_2 = (
    "application/openmetrics-text;version=1.0.0;q=0.75,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=0.0.4;q=0.4,*/*;q=0.3"
)
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,"
    "*/*;q=0.2"
)
PROTOBUF_FIRST = (
    "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;"
    "q=0.7,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)


@pytest.mark.parametrize(
    ("accept", "openmetrics"),
    [
        ("", False),
        ("*/*", False),
        ("text/plain", False),
        ("text/html,application/xhtml+xml,*/*;q=0.8", False),
        ("application/openmetrics-text", True),
        ("application/openmetrics-text; version=1.0.0", True),
        ('application/openmetrics-text; version="1.0.0"', True),
        ("APPLICATION/OpenMetrics-Text;Version=1.0.0", True),
        ("application/openmetrics-text;version=0.0.1", False),
        ("application/openmetrics-text;version=2.0.0", False),
        ("application/openmetrics-text;version=99.0.0, text/plain;q=0.1", False),
        ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text;q=0.0, */*", False),
        ("application/openmetrics-text;q=0.5,text/plain;q=0.6", False),
        ("application/openmetrics-text;q=0.6,text/plain;q=0.5", True),
        ("text/plain;q=0.5,application/openmetrics-text;q=0.5", True),
        ("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=1.0.0", True),
        ("application/openmetrics-text;q=high", True),
        (";;,,q=", False),
        (PROMETHEUS_2, True),
        (PROMETHEUS_3, True),
        (PROTOBUF_FIRST, False),
    ],
)
def test_openmetrics_is_for_those_who_prefer_it(accept: str, openmetrics: bool) -> None:
    """By weight; a version that is not spoken here is as good as not asked for."""
    assert wants_openmetrics(accept) is openmetrics


@pytest.mark.parametrize(
    ("encodings", "gzip"),
    [
        ("", False),
        ("identity", False),
        ("gzip", True),
        ("GZIP", True),
        ("*", True),
        ("deflate, gzip;q=0.5", True),
        ("gzip;q=0", False),
        ("gzip;q=0.000", False),
        ("gzip; q=0", False),
        ("gzip;q=0, *", False),
        ("*, gzip;q=0", False),
        ("*;q=0, gzip", True),
        ("*;q=0", False),
        ("deflate, br", False),
        ("gzipped", False),
    ],
)
def test_gzip_is_for_those_who_accept_it(encodings: str, gzip: bool) -> None:
    """What is said of gzip itself beats what is said of everything."""
    assert wants_gzip(encodings) is gzip


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("10", 5.0),
        ("5.5", 5.0),
        ("5", 4.5),
        ("3.25", 2.75),
        ("1", 0.5),
        ("0.5", 0.25),
        ("0.1", 0.05),
        (" 3 ", 2.5),
        (None, 5.0),
        ("", 5.0),
        ("0", 5.0),
        ("-1", 5.0),
        ("nan", 5.0),
        ("inf", 5.0),
        ("-inf", 5.0),
        ("1e999", 5.0),
        ("ten", 5.0),
        ("3s", 5.0),
        ("3,5", 5.0),
        ("0x10", 5.0),
        ("\u0663", 2.5),
    ],
)
def test_a_scrape_ends_before_the_scraper_gives_up(header: str | None, seconds: float) -> None:
    """Half a second earlier, within the flag; a header that is no number is ignored."""
    assert scrape_seconds(header, 5.0) == pytest.approx(seconds)


@given(st.text(max_size=40))
def test_no_header_fails_a_scrape(text: str) -> None:
    """Whatever a client sends."""
    assert wants_openmetrics(text) in (True, False)
    assert wants_gzip(text) in (True, False)
    assert 0 < scrape_seconds(text, 5.0) <= 5.0


def body(*, openmetrics: bool, process: bool) -> str:
    """An exposition of two VMs that are down."""
    plan = Plan()
    blobs = [plan.render(VmState(vm=vm, up=False, reason="busy")) for vm in ("a", "b")]
    return exposition.body(blobs, openmetrics=openmetrics, process=process).decode()


def test_an_openmetrics_body_is_openmetrics() -> None:
    """A parser that is not ours reads it, with the process's own metrics, to its one end."""
    text = body(openmetrics=True, process=True)
    families = {family.name: family for family in parse_openmetrics(text)}

    assert text.endswith("# EOF\n")
    assert text.count("# EOF") == 1
    assert [sample.labels["vm"] for sample in families["qemu_vm_up"].samples] == ["a", "b"]
    assert "process_cpu_seconds" in families


def test_a_text_body_is_text() -> None:
    """Without an end, and without what only OpenMetrics has."""
    text = body(openmetrics=False, process=True)
    families = {family.name for family in parse_text(text)}

    assert {"qemu_vm_up", "process_cpu_seconds"} <= families
    assert "# EOF" not in text
    assert "# UNIT" not in text


@pytest.mark.parametrize("openmetrics", [True, False])
def test_the_process_can_be_left_out(openmetrics: bool) -> None:
    """A probe is of one VM."""
    assert "process_" not in body(openmetrics=openmetrics, process=False)


def test_nothing_to_tell_is_an_exposition_too() -> None:
    """A host without VMs is no error."""
    assert exposition.body([], openmetrics=False, process=False) == b""
    assert exposition.body([], openmetrics=True, process=False) == b"# EOF\n"


@pytest.mark.parametrize("library", [zlib, isal_zlib])
@pytest.mark.parametrize("vms", [1, 600])
def test_a_compressed_exposition_is_the_exposition(
    library: object, vms: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the fast library and without it, in one portion and in many."""
    monkeypatch.setattr(exposition, "_zlib", library)
    blobs = [Plan().render(VmState(vm=f"vm{i}", up=True, status="running")) for i in range(vms)]
    [packed], compressed = exposition.encoded(blobs, openmetrics=True, process=False, gzip=True)
    plain, _ = exposition.encoded(blobs, openmetrics=True, process=False, gzip=False)
    whole = exposition.body(blobs, openmetrics=True, process=False)

    assert compressed == (len(whole) >= exposition.GZIP_FROM_BYTES)
    assert (gzip.decompress(packed) if compressed else packed) == b"".join(plain) == whole
    assert not compressed or len(packed) < len(whole) / 3
    assert (len(plain) > 1) == (len(whole) > exposition._PORTION_BYTES)
