"""What clients may use of the process: connections, time and memory."""

from __future__ import annotations

import resource

from msgspec import Struct

#: Connections at once where descriptors are plenty, and where they are few.
_MOST_CONNECTIONS = 512
_FEWEST_CONNECTIONS = 4
#: The part of all descriptors that clients may use: the others are for VMs.
_SHARE = 4


class Limits(Struct, frozen=True, kw_only=True):
    """Deadlines and caps of the HTTP side; none of them is a flag."""

    #: Connections of clients at once.
    connections: int = _MOST_CONNECTIONS
    #: Descriptors that are kept free so that a client can be accepted when VMs use all others.
    spare_descriptors: int = 4
    #: From a connection, or the first byte of another request on it, to the end of the headers.
    head_seconds: float = 30.0
    #: From one answer on a connection to the next request. Prometheus scrapes once a minute or so.
    idle_seconds: float = 180.0
    #: A TLS handshake.
    handshake_seconds: float = 10.0
    #: How long the rest of a body that no endpoint asked for is read, so that its sender reads the answer.
    linger_seconds: float = 1.0
    #: How long a scrape waits for a place of --web.max-requests before it is refused.
    place_seconds: float = 2.0
    #: A client that has not taken its answer by then is cut off.
    send_seconds: float = 30.0
    #: Bytes of answers in memory that clients have not taken yet; one answer may always be larger.
    unsent_bytes: int = 32 << 20
    #: A client that has not finished by then is cut off when the process ends.
    shutdown_seconds: float = 3.0


def limits_of_process() -> Limits:
    """Return the limits for as many descriptors as this process may have."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return Limits()
    share = max(_FEWEST_CONNECTIONS, min(_MOST_CONNECTIONS, soft // _SHARE))
    return Limits(connections=share)
