"""The exception tree.

ExporterError
 +- ConfigError          a flag, the config file or the environment is wrong: refuse to start
 +- TargetError          one VM cannot be collected now; carries the `reason` label
     +- Unreachable      no session: no_socket refused permission busy stopped greeting_timeout
     +- Replaced         the path no longer leads to the connected socket: no_socket
     +- TargetTimeout    a session, but no reply in time: timeout
     +- ProtocolError    a reply that violates QMP, or a lost connection: protocol
 +- CommandRefused       a command that is not on the session's list
 +- ActionError          a VM was not changed as requested
     +- Refused          nothing was sent; carries the name of the problem
     +- Rejected         QEMU answered with an error
     +- OutcomeUnknown   the command was sent, but no reply came
     +- LayerLost        the command was done, but the file of the new layer was removed
"""

from __future__ import annotations

#: Every value of the `reason` label of `qemu_vm_scrape_error`; `internal` is a bug in this program.
REASONS = (
    "no_socket",
    "refused",
    "permission",
    "busy",
    "stopped",
    "greeting_timeout",
    "timeout",
    "protocol",
    "internal",
)


class ExporterError(Exception):
    """Base of every error that this program raises on purpose."""


class ConfigError(ExporterError):
    """A setting is wrong; the message names the setting and the place."""


class TargetError(ExporterError):
    """One VM cannot be collected now."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        #: One of `REASONS`.
        self.reason = reason


class Unreachable(TargetError):
    """No QMP session could be established."""


class Replaced(TargetError):
    """The path of a VM's socket no longer leads to the socket that was connected to."""

    def __init__(self, detail: str) -> None:
        super().__init__("no_socket", detail)


class TargetTimeout(TargetError):
    """The VM has a session with us but does not answer."""

    def __init__(self, detail: str, reason: str = "timeout") -> None:
        super().__init__(reason, detail)


class ProtocolError(TargetError):
    """The VM sent something that QMP does not allow, or closed the connection."""

    def __init__(self, detail: str) -> None:
        super().__init__("protocol", detail)


class CommandRefused(ExporterError):
    """A command that is in neither `qmp.queries` nor `qmp.commands` was about to be sent."""


class ActionError(ExporterError):
    """A VM was not changed as requested."""


class Refused(ActionError):
    """Nothing was sent: a precondition is not met."""

    def __init__(self, problem: str, detail: str, job: object = None, **more: object) -> None:
        super().__init__(detail)
        #: A key of `api.PROBLEMS`.
        self.problem = problem
        #: Further members of `api.Problem`: the conflicting `job`, if any.
        self.more = more if job is None else {"job": job, **more}


class Rejected(ActionError):
    """QEMU understood the command and refused it."""


class OutcomeUnknown(ActionError):
    """The command was sent but no reply came: it may or may not have been carried out."""

    def __init__(self, detail: str, *, late: bool = False) -> None:
        super().__init__(detail)
        #: Whether the connection is still open, and the VM just does not answer.
        self.late = late


class LayerLost(ActionError):
    """The disk has its new layer, but QEMU removed the file: its data is lost when the VM ends."""
