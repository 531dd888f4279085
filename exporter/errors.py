"""The exception tree.

ExporterError
 +- ConfigError          a flag, the config file or the environment is wrong: refuse to start
 +- TargetError          one VM cannot be collected now; carries the `reason` label
     +- Unreachable      no session: no_socket refused permission busy stopped greeting_timeout
     +- Replaced         the path does not lead to the socket that was connected to: no_socket
     +- TargetTimeout    a session, but no answer in time: timeout
     +- ProtocolError    an answer that is not what QMP promises: protocol
 +- CommandRefused       a command that is not on the session's list
 +- ActionError          a VM was not changed as it was asked to be
     +- Refused          nothing was sent; carries the name of the problem
     +- Rejected         QEMU answered with an error
     +- OutcomeUnknown   the command left, and no answer came
     +- LayerLost        it was done, and the new layer has no name
"""

from __future__ import annotations

#: Every value of the `reason` label of `qemu_vm_scrape_error`; `internal` is a fault of this program.
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
    """The path of a VM's socket leads to another socket than the one that was connected to."""

    def __init__(self, detail: str) -> None:
        super().__init__("no_socket", detail)


class TargetTimeout(TargetError):
    """The VM has a session with us and does not answer."""

    def __init__(self, detail: str, reason: str = "timeout") -> None:
        super().__init__(reason, detail)


class ProtocolError(TargetError):
    """The VM said something that QMP does not allow, or hung up."""

    def __init__(self, detail: str) -> None:
        super().__init__("protocol", detail)


class CommandRefused(ExporterError):
    """A command was about to be sent that is neither one of `queries` nor one of `commands`."""


class ActionError(ExporterError):
    """A VM was not changed as it was asked to be."""


class Refused(ActionError):
    """Nothing was sent: a guard stands in the way."""

    def __init__(self, problem: str, detail: str, job: object = None, **more: object) -> None:
        super().__init__(detail)
        #: A key of `problems.PROBLEMS`.
        self.problem = problem
        #: Members of `api.Problem` beside: the `job` that stands in the way, if any.
        self.more = more if job is None else {"job": job, **more}


class Rejected(ActionError):
    """QEMU understood the command and did not do it."""


class OutcomeUnknown(ActionError):
    """The command left this process, and no answer came: it may have been done or not."""

    def __init__(self, detail: str, *, late: bool = False) -> None:
        super().__init__(detail)
        #: Whether the VM still has the connection, and just does not answer.
        self.late = late


class LayerLost(ActionError):
    """The disk has its new layer, whose file was removed: what it holds is gone with the VM."""
