"""Puts together everything that may change a VM, and checks its configuration."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext

from exporter.admin import record_store
from exporter.admin.audit import OWN, Audit
from exporter.admin.job_records import JobRecords
from exporter.admin.reconciler import Reconciler
from exporter.admin.requests import AdminRequests
from exporter.admin.snapshot_records import SnapshotRecords
from exporter.admin.timing import Timing
from exporter.api import VERBS
from exporter.collect import Fleet
from exporter.config import Config
from exporter.errors import ConfigError


@contextmanager
def opened(state_directory: str | None) -> Iterator[AdminService]:
    """Open the service, with its state directory locked for this process.

    Raises:
        ConfigError: another process uses it, or it cannot be read or written.
    """
    with nullcontext() if state_directory is None else record_store.locked(state_directory):
        yield AdminService(state_directory)


class AdminService:
    """The requests of users, if they are enabled, and the reconciler."""

    def __init__(self, state_directory: str | None, timing: Timing | None = None) -> None:
        """Read the records in `state_directory`; None if the admin API is not enabled.

        No other process may use the directory: see `opened`.

        Raises:
            ConfigError: it cannot be read or written.
        """
        enabled = state_directory is not None
        self.trail = Audit((*VERBS, *OWN) if enabled else OWN)
        self.ledger = JobRecords(state_directory) if state_directory is not None else None
        self.snapshots = SnapshotRecords(state_directory) if state_directory is not None else None
        self._timing = timing or Timing()
        self.keeper = Reconciler(self.ledger, self.trail, self._timing)

    @asynccontextmanager
    async def over(self, fleet: Fleet) -> AsyncIterator[AdminRequests | None]:
        """Run over `fleet`, whose observer is the reconciler and whose actions the trail counts.

        Yields None if the admin API is not enabled.
        """
        keeping = asyncio.create_task(self.keeper.run(fleet))
        try:
            if self.ledger is not None and self.snapshots is not None:
                yield AdminRequests(fleet, self.ledger, self.snapshots, self._timing)
            else:
                yield None
        finally:
            keeping.cancel()
            await asyncio.wait((keeping,))
            await self.keeper.close()


def check(config: Config, users: Collection[str], *, enabled: bool) -> None:
    """Check that the admin API, if it is enabled, has users, and that those of grants exist.

    Raises:
        ConfigError: there are no users, or a grant names one that does not exist.
    """
    if not enabled:
        return
    if not users:
        raise ConfigError("--web.enable-admin-api: requires users in --web.config.file")
    for number, grant in enumerate(config.admin.grants):
        if unknown := sorted(set(grant.users) - set(users)):
            raise ConfigError(
                f"admin.grants[{number}]: user {unknown[0]!r} is not in --web.config.file"
            )
