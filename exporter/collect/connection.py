"""One connection to a QEMU, and all that is known for as long as it lasts."""

from __future__ import annotations

from exporter.collect.discovery import Target, printable
from exporter.collect.exports import Exports
from exporter.collect.job_list import JobList
from exporter.collect.querier import Querier
from exporter.jobs import Assembler, JobPlaces, VmMemory
from exporter.model import Corruption
from exporter.qmp import Session, SocketFile


class Connection:
    """What belongs to one connection: it is never reset, but replaced with the connection.

    Another QEMU may be behind each. Where it is certainly the one before, the new connection
    inherits what is true of a QEMU for as long as it runs.
    """

    def __init__(
        self,
        target: Target,
        session: Session,
        memory: VmMemory,
        before: Connection | None = None,
    ) -> None:
        """`before` is the connection that this one replaces."""
        settings, process = target.settings, session.process
        self.generation = session.generation
        #: The socket that was connected to, and its process.
        self.peer: tuple[SocketFile | None, int] = (session.file, session.peer_pid)
        self.same_peer = before is not None and before.peer == self.peer
        #: Whether it goes on with the QEMU of the connection before.
        self.resumes = self.same_peer and settings.connection == "per-scrape"
        #: Whether anything was asked yet.
        self.used = False
        #: None until it is known.
        self.name: str | None = None
        self.uuid = ""
        #: The commands that this QEMU has, empty where that was not asked yet.
        self.commands: frozenset[str] = frozenset()
        #: Whether query-block may be asked for a flat answer.
        self.flat_allowed = True
        #: Whether the next scrape asks for nodes under no device.
        self.ask_nodes = settings.nodes
        resumed = before if self.resumes else None
        #: Whether this QEMU was seen to run.
        self.has_run: bool = resumed.has_run if resumed else False
        self.places: JobPlaces = resumed.places if resumed else JobPlaces()
        #: The nodes that query-block must not meet.
        self.corruption: Corruption = (
            before.corruption if before and self.same_peer and session.peer_pid else Corruption()
        )
        self.querier = Querier(target.vm, session, process.version)
        self.exports = Exports(self.querier, settings)
        self.job_list = JobList(self.querier, memory.jobs, self.places)
        self.assembler = Assembler(
            target.vm,
            printable(target.socket),
            process,
            settings.expected_depth,
            memory,
            self.places,
        )
