"""What a scraper is answered: the format it asks for, the deadline it gives, the body."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from exporter.expose.families import families
from exporter.expose.plan import FamilyBytes

try:
    # Five times as fast as zlib for the same size; not to be had everywhere.
    from isal import isal_zlib as _zlib
except ImportError:
    import zlib as _zlib  # type: ignore[no-redef]

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
#: What a scrape needs for its way back.
TIMEOUT_OFFSET_SECONDS = 0.5

#: A smaller body is sent as it is.
GZIP_FROM_BYTES = 4096
#: A body is made, compressed and sent in portions of this size or a little more.
_PORTION_BYTES = 256 * 1024
#: Higher levels cost three to ten times as much, and save a tenth.
_LEVEL = 1
#: A gzip header and trailer around the largest window. [zlib.h, deflateInit2]
_GZIP_WBITS = 31

_WEIGHT = re.compile(r"^q=([01](?:\.\d{0,3})?)$")
_REGISTRY = CollectorRegistry()
ProcessCollector(registry=_REGISTRY)


def wants_openmetrics(accept: str) -> bool:
    """Whether an Accept header prefers OpenMetrics 1.0.0 to the text format.

    >>> wants_openmetrics("application/openmetrics-text;version=1.0.0,text/plain;q=0.5")
    True
    """
    openmetrics = text = 0.0
    for media_range in accept.lower().split(","):
        kind, *parameters = [part.strip() for part in media_range.split(";")]
        weight = 1.0
        version = None
        for parameter in parameters:
            if match := _WEIGHT.match(parameter):
                weight = float(match[1])
            elif parameter.startswith("version="):
                version = parameter.removeprefix("version=").strip('"')
        if kind == "application/openmetrics-text" and version in (None, "1.0.0"):
            openmetrics = max(openmetrics, weight)
        elif kind in ("text/plain", "text/*", "*/*") and version in (None, "0.0.4"):
            text = max(text, weight)
    return openmetrics > 0 and openmetrics >= text


def wants_gzip(accept_encoding: str) -> bool:
    """Whether an Accept-Encoding header allows gzip."""
    weights = {}
    for coding in accept_encoding.lower().split(","):
        name, _, parameter = coding.partition(";")
        match = _WEIGHT.match(parameter.strip())
        weights[name.strip()] = float(match[1]) if match else 1.0
    return weights.get("gzip", weights.get("*", 0.0)) > 0


def scrape_seconds(header: str | None, limit_seconds: float) -> float:
    """Return the time that a scrape may take, by its X-Prometheus-Scrape-Timeout-Seconds.

    A header that is no positive number is ignored: it must not fail the scrape.
    """
    try:
        asked = float(header) if header else math.nan
    except ValueError:
        asked = math.nan
    if not 0 < asked < math.inf:
        return limit_seconds
    return min(max(asked - TIMEOUT_OFFSET_SECONDS, asked / 2), limit_seconds)


def encoded(
    blobs: Sequence[FamilyBytes], *, openmetrics: bool, process: bool, gzip: bool
) -> tuple[list[bytes], bool]:
    """Return an exposition in parts as it is sent, and whether it is compressed.

    For a thread: no part takes long, so that the event loop goes on. Compressed, a large exposition
    is never in memory as a whole.
    """
    parts = _portions(_parts(blobs, openmetrics=openmetrics, process=process))
    first = next(parts, b"")
    if not gzip or len(first) < GZIP_FROM_BYTES:
        return [first, *parts], False
    compressor = _zlib.compressobj(_LEVEL, _zlib.DEFLATED, _GZIP_WBITS)
    pieces = [compressor.compress(part) for part in chain([first], parts)]
    return [b"".join([*pieces, compressor.flush()])], True


def _portions(parts: Iterable[bytes]) -> Iterator[bytes]:
    """Join parts into some that are worth a call each: a compressor does badly with crumbs."""
    waiting: list[bytes] = []
    size = 0
    for part in parts:
        waiting.append(part)
        size += len(part)
        if size >= _PORTION_BYTES:
            yield b"".join(waiting)
            waiting, size = [], 0
    yield b"".join(waiting)


def body(blobs: Sequence[FamilyBytes], *, openmetrics: bool, process: bool) -> bytes:
    """Return a whole exposition, with the metrics of this process if `process`."""
    return b"".join(_parts(blobs, openmetrics=openmetrics, process=process))


def _parts(blobs: Sequence[FamilyBytes], *, openmetrics: bool, process: bool) -> Iterator[bytes]:
    yield from families(blobs, openmetrics=openmetrics)
    if process:
        generate: Callable[[CollectorRegistry], bytes] = (
            generate_openmetrics if openmetrics else generate_latest
        )
        yield generate(_REGISTRY).removesuffix(b"# EOF\n")
    if openmetrics:
        yield b"# EOF\n"
