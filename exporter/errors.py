"""The exception tree.

ExporterError
 +- ConfigError          a flag, the config file or the environment is wrong: refuse to start
 +- TargetError          one VM cannot be collected now; carries the `reason` label
     +- Unreachable      no session: no_socket refused permission busy stopped greeting_timeout
     +- TargetTimeout    a session, but no answer in time: timeout
     +- ProtocolError    an answer that is not what QMP promises: protocol
 +- CommandRefused       a command that is not on the session's list of queries
"""

from __future__ import annotations

#: Every value of the `reason` label of `qemu_vm_scrape_error`.
REASONS = (
    "no_socket",
    "refused",
    "permission",
    "busy",
    "stopped",
    "greeting_timeout",
    "timeout",
    "protocol",
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


class TargetTimeout(TargetError):
    """The VM has a session with us and does not answer."""

    def __init__(self, detail: str, reason: str = "timeout") -> None:
        super().__init__(reason, detail)


class ProtocolError(TargetError):
    """The VM said something that QMP does not allow, or hung up."""

    def __init__(self, detail: str) -> None:
        super().__init__("protocol", detail)


class CommandRefused(ExporterError):
    """A command was about to be sent that is not a query of `qapi`."""
