"""The log lines about one VM, for a probe with debug=true."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from exporter.admin import audit
from exporter.process import Formatter


@contextmanager
def captured_log(vm: str) -> Iterator[list[str]]:
    """Collect the log lines about one VM, but for those of the audit trail."""
    lines: list[str] = []

    class Capture(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if getattr(record, "vm", None) == vm and record.name != audit.log.name:
                lines.append(self.format(record))

    handler = Capture()
    handler.setFormatter(Formatter("logfmt"))
    logger = logging.getLogger("exporter")
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
