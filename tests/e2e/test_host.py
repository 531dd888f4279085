"""The hosts that tests boot: what is left of one that does not come up."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e import host
from tests.e2e.host import Host
from tests.e2e.lab import Process


def test_a_host_that_does_not_boot_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does one in which nothing starts at all."""
    nspawn = Process(["sleep", "600"], tmp_path / "log")

    def never(holds: object, what: str) -> None:
        raise AssertionError(f"never came: {what}")

    monkeypatch.setattr(host, "wait_until", never)
    with pytest.raises(AssertionError, match="never came: systemd starts"):
        Host(tmp_path, nspawn)

    assert nspawn.exit_code is not None
