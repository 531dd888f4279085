"""How long a session waits for a monitor, and how much it takes from one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """Waits in seconds, and the most events."""

    #: A greeting comes within milliseconds; after this long the session finds out why it does not.
    greeting_patience_seconds: float = 0.2
    #: How long a client that found the socket in use waits for the other one to leave.
    busy_patience_seconds: float = 1.0
    #: How often it checks meanwhile.
    busy_check_seconds: float = 0.1
    #: A VM that sends more events than this in so short a time would keep this process busy with
    #: nothing else. A job that retries for ever makes QEMU send some 7,000 a second, which are read
    #: however long the next scrape takes.
    events: int = 100_000
    events_seconds: float = 5.0
