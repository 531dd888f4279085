"""qemu.qmp, and all that is relied on of it that its documentation does not promise.

The library connects, reads the greeting, negotiates and ends a session. In between its reader
waits, for what it would do for each message costs five times what decoding the message does
(bench/README.md): lines are read and written past it.

Public, and used as documented: `QMPClient`, with `readbuflen`, `connect()` with a socket,
`disconnect()`, `runstate` and `greeting`; `Message`, `Runstate`, `QMPError`, and `ConnectError`
with its `exc`; the hooks `_cb_inbound` and `_cb_outbound` for subclasses.

Not promised, and so tested with the release that is pinned and with the newest:

* `_do_recv()` reads one message: the greeting, the answer to qmp_capabilities, and then, in state
  RUNNING, all that follow, from a task that ends the session when it raises.
* `_reader` and `_writer` are asyncio's streams, from the connection to the end of the session, and
  None before and after.
* `_bh_disconnect()` runs once at the end of each session, whoever ended it.
* `_wait_disconnect()` is what `disconnect()` waits in, and may be cancelled there.
* `connect()` lets an AssertionError out where the VM hangs up in the last step of the negotiation.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Mapping
from typing import Any

from qemu.qmp import ConnectError, Message, QMPClient, QMPError, Runstate

from exporter.errors import CommandRefused, ExporterError, ProtocolError
from exporter.qmp.line_protocol import LINE_LIMIT_BYTES, LineProtocol

#: The private names above.
RELIED_ON = ("_bh_disconnect", "_do_recv", "_reader", "_wait_disconnect", "_writer")
#: How an event begins: one of libvirt's proxy, one of QEMU.
_EVENTS = (b'{"event"', b'{"timestamp"')

# The library logs whole messages, with the secrets in them; what went wrong is said here.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL + 1)


class NotQmp(ProtocolError):
    """What is at the other end does not speak QMP."""


class LineClient(QMPClient):
    """A session of qemu.qmp whose lines, once it is negotiated, go to `take_line`."""

    def __init__(self) -> None:
        super().__init__(readbuflen=LINE_LIMIT_BYTES)
        #: Why the connection was given up, where it was not the VM that closed it.
        self._fault: ProtocolError | None = None

    # What a subclass does.

    def take_line(self, line: bytes) -> None:
        """Take a line, without its end; a ProtocolError ends the session."""
        raise NotImplementedError

    def take_early_event(self) -> None:
        """Take note of an event that came before the session was negotiated."""

    def note_negotiation(self) -> None:
        """Take note that the library sends its one command, qmp_capabilities."""

    def ended(self, error: ProtocolError) -> None:
        """Take note that the session has ended, and why."""

    # What its users do.

    @property
    def running(self) -> bool:
        """Whether the session is negotiated and has not ended."""
        return self.runstate is Runstate.RUNNING

    @property
    def idle(self) -> bool:
        """Whether there is no session, nor the beginning of one."""
        return self.runstate is Runstate.IDLE

    @property
    def greeted_version(self) -> Mapping[str, Any]:
        """The version of the greeting as it was sent, empty before it."""
        return self.greeting.QMP.version if self.greeting else {}

    async def greet(self, sock: socket.socket) -> None:
        """Begin a session on a connected socket, which is closed if that fails.

        Raises:
            NotQmp: what was said is not QMP.
            ProtocolError: the VM hung up.
        """
        try:
            await self.connect(sock)
        except ConnectError as error:
            if isinstance(error.exc, (EOFError, ConnectionError)):
                raise ProtocolError("hung up before its greeting") from None
            raise NotQmp("does not speak QMP") from None
        except AssertionError:
            raise ProtocolError("hung up before it answered") from None
        finally:
            if self.idle:
                sock.close()

    def send_line(self, wire: bytes) -> None:
        """Write bytes past the library."""
        assert self._writer is not None
        self._writer.write(wire)

    def abort(self) -> None:
        """Drop the connection without flushing: a stopped QEMU reads nothing any more."""
        if self._writer is not None:
            self._writer.transport.abort()

    async def close(self) -> None:
        """Drop the connection, and wait until it is gone."""
        if self.idle:
            return
        self.abort()
        # Why the connection ended was reported, or will be; here it only ends.
        with contextlib.suppress(QMPError, ExporterError, OSError, EOFError, ValueError):
            await self.disconnect()

    # What the library calls.

    def _cb_inbound(self, msg: Message) -> Message:
        return msg

    def _cb_outbound(self, msg: Message) -> Message:
        # What the library itself sends passes here; lines do not.
        if msg.get("execute") != "qmp_capabilities":
            raise CommandRefused("the library may send qmp_capabilities alone")
        self.note_negotiation()
        return msg

    async def _do_recv(self) -> Message:
        assert self._reader is not None
        if self.running:
            await self._read_lines(self._reader)
        try:
            # libvirt's proxy tells a client of what came before it, and that before the greeting;
            # a QEMU that is just starting may as well. [monitor_qapi_event_emit]
            while (line := await self._reader.readline()).startswith(_EVENTS):
                self.take_early_event()
        except ValueError:
            self._fault = ProtocolError(f"sent a line of more than {LINE_LIMIT_BYTES} bytes")
            raise self._fault from None
        if not line.endswith(b"\n"):
            raise EOFError
        return Message(line, eager=False)

    async def _read_lines(self, reader: asyncio.StreamReader) -> None:
        """Read past the library's stream for the rest of the session, and raise when it ends."""
        assert self._writer is not None
        lines = LineProtocol(self.take_line, self._writer.transport)
        try:
            await lines.take_over(reader)
            await lines.ended
        except ProtocolError as error:
            self._fault = error
            raise
        raise EOFError

    async def _wait_disconnect(self) -> None:
        # The library leaves its tasks' exception to nobody where the one that waits is cancelled,
        # and asyncio then logs it as an error: of a VM that only went away.
        waiting = asyncio.ensure_future(super()._wait_disconnect())
        waiting.add_done_callback(_retrieve)
        await asyncio.shield(waiting)

    async def _bh_disconnect(self) -> None:
        try:
            await super()._bh_disconnect()
        finally:
            self.ended(self._fault or ProtocolError("hung up before it answered"))


def _retrieve(ended: asyncio.Future[None]) -> None:
    if not ended.cancelled():
        ended.exception()
