"""What users rest on: a release's metric names, its other names, and its records of what was asked for.

deploy/UPGRADING.md tells them what to expect, and us what to do where something has to go.
"""

from __future__ import annotations

import json
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from exporter import __version__
from exporter.admin.job_records import JobRecords
from exporter.admin.snapshot_records import SnapshotRecords
from exporter.api.verbs import Snapshot
from exporter.metrics.table import COLLECTORS, METRICS
from exporter.metrics.types import Metric
from tests.interface import interface

RELEASED = Path(__file__).parent.parent / "data" / "released"
#: The releases whose names are kept, the oldest first.
VERSIONS = sorted(
    (path.stem for path in RELEASED.glob("*.json")), key=lambda name: [*map(int, name.split("."))]
)
_WHAT_TO_DO = (
    "dashboards, rules and scripts of users name this. Keep it; or, in a release with another first"
    " number (while that is 0, the second), take it away as deploy/UPGRADING.md says"
)


def _described(metric: Metric) -> dict[str, object]:
    """Return what users rely on: everything but the help."""
    more = [label for label in metric.labels if label not in metric.scope.labels]
    return {
        "kind": metric.kind,
        "labels": sorted([*metric.scope.labels, *more, *(["status"] if metric.states else [])]),
        "states": sorted(metric.states),
        "collector": metric.collector,
    }


def table() -> dict[str, dict[str, Any]]:
    """Return the table as a release keeps it."""
    return {metric.name: _described(metric) for metric in METRICS}


def test_what_this_version_has_is_kept_for_the_next(request: pytest.FixtureRequest) -> None:
    """`pytest --update-golden` adds what is new. It never takes away or changes what was there."""
    path = RELEASED / f"{__version__}.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    if request.config.getoption("--update-golden"):
        kept = table() | kept
        lines = [f"  {json.dumps(name)}: {json.dumps(kept[name])}" for name in sorted(kept)]
        path.write_text("{\n" + ",\n".join(lines) + "\n}\n")

    assert table().keys() <= kept.keys()


@pytest.mark.parametrize("version", VERSIONS)
def test_no_name_type_label_or_state_of_a_release_is_gone(version: str) -> None:
    """More may come: a state, a family. A label may not, because it makes other series."""
    now = table()
    for name, then in json.loads((RELEASED / f"{version}.json").read_text()).items():
        assert name in now, f"{name} of {version} is gone: {_WHAT_TO_DO}"
        for what in ("kind", "labels", "collector"):
            assert now[name][what] == then[what], (
                f"{what} of {name} was {then[what]} in {version}: {_WHAT_TO_DO}"
            )
        gone = set(then["states"]) - set(now[name]["states"])
        assert not gone, f"{name} has lost {sorted(gone)} since {version}: {_WHAT_TO_DO}"


def test_every_collector_of_a_family_can_be_turned_off() -> None:
    """Its flag is API too."""
    assert {str(each["collector"]) for each in table().values()} - {""} <= {*COLLECTORS}


# All other names.


def test_what_else_this_version_has_is_kept_for_the_next(request: pytest.FixtureRequest) -> None:
    """Flags, keys, paths, fields, problems, exit codes, alerts and recorded series: added, never taken away."""
    path = RELEASED / "interface" / f"{__version__}.json"
    kept = json.loads(path.read_text()) if path.exists() else dict.fromkeys(interface(), ())
    if request.config.getoption("--update-golden"):
        kept = {kind: sorted({*names, *kept.get(kind, ())}) for kind, names in interface().items()}
        path.write_text(f"{json.dumps(kept, indent=1)}\n")

    assert not [
        f"{kind}: {name}"
        for kind, names in interface().items()
        for name in names
        if name not in kept[kind]
    ]


@pytest.mark.parametrize("version", VERSIONS)
def test_no_other_name_of_a_release_is_gone(version: str) -> None:
    """Whoever wrote it into a unit, a script, a file or a silence finds that it still holds."""
    now = interface()
    for kind, names in json.loads((RELEASED / "interface" / f"{version}.json").read_text()).items():
        gone = [name for name in names if name not in now[kind]]
        assert not gone, f"{kind} of {version}: {gone}: {_WHAT_TO_DO}"


def test_every_kind_of_name_is_found() -> None:
    """A list that came out short would promise nothing."""
    found = interface()

    assert {
        "serve --qmp.sockets",
        "serve --qmp.connection per-scrape",
        "commit --complete-when-ready",
        "jobs",
    } <= {*found["flags"]}
    assert {
        "groups.pattern",
        "admin.grants.same_files",
        "topology: never",
        "latency_histograms.allow_managed",
    } <= {*found["configuration"]}
    assert {"tls_server_config.client_allowed_sans", "basic_auth_users", "rate_limit.burst"} <= {
        *found["web configuration"]
    }
    assert {"GET /api/v1/vms/{vm}", "POST /api/v1/admin/vms/{vm}/snapshots"} <= {
        *found["operations"]
    }
    assert {"/metrics", "/probe", "/sd", "/-/healthy"} <= {*found["pages"]}
    assert {"Job.job_id", "Problem.type", "Commit.speed_bytes_per_second"} <= {*found["fields"]}
    assert ({*found["exit codes"]}, "managed-vm" in found["problems"]) == (
        {"0", "1", "2", "3", "4", "130"},
        True,
    )
    assert "QemuBlockJobStalled" in found["alerts"]
    assert "vm_job:qemu_block_job_state:now" in found["recorded"]


# The state directory.


@pytest.mark.parametrize("version", VERSIONS)
def test_the_records_of_a_release_can_be_read(version: str, tmp_path: Path) -> None:
    """After an upgrade the same job id is still known: it never starts a second job."""
    record = json.loads((RELEASED / "ledger" / f"{version}.json").read_text())
    record["ended_timestamp_seconds"] = time.time()
    (tmp_path / "web1@qbe-web1-nightly.json").write_text(json.dumps(record))
    entry = JobRecords(str(tmp_path)).get("web1", "qbe-web1-nightly")

    assert entry is not None
    assert (entry.outcome, entry.request) == ("completed", {"action": "commit", "device": "disk0"})


def test_a_record_of_a_newer_version_can_be_read(tmp_path: Path) -> None:
    """Whoever goes back loses what the newer one knew more, and nothing else."""
    record = json.loads((RELEASED / "ledger" / f"{VERSIONS[-1]}.json").read_text())
    record |= {"ended_timestamp_seconds": time.time(), "of_the_future": [1, {"x": None}]}
    (tmp_path / "web1@qbe-web1-nightly.json").write_text(json.dumps(record))

    assert JobRecords(str(tmp_path)).get("web1", "qbe-web1-nightly") is not None


@pytest.mark.parametrize("version", VERSIONS)
def test_the_record_of_a_snapshot_can_be_read_by_another_version(
    version: str, tmp_path: Path
) -> None:
    """By one that knows more of it than it says, and by one that knows less."""
    record = json.loads((RELEASED / "snapshots" / f"{version}.json").read_text())
    request = Snapshot(device=record["device"], file=record["file"])
    digest = sha256(record["file"].encode()).hexdigest()
    record |= {"requested_timestamp_seconds": time.time()}
    for name, more in (("web1", {}), ("web2", {"of_the_future": [1, {"x": None}]})):
        told = record | {"vm": name} | more
        (tmp_path / f"{name}@{digest}.snapshot").write_text(json.dumps(told))
    account = SnapshotRecords(str(tmp_path))
    found = [account.get(name, request) for name in ("web1", "web2")]

    assert [asked.made.inode if asked else None for asked in found] == [record["file_inode"]] * 2
