"""HTTP as no library would send it."""

from __future__ import annotations

import base64
import socket
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import msgspec

from tests.e2e.lab import PATIENCE_SECONDS, Exporter

ADMIN = "/api/v1/admin/vms/vm"


def basic(user: str, password: str | None = None) -> str:
    """Return an Authorization header; each user's password is the name, doubled."""
    text = f"{user}:{user * 2 if password is None else password}"
    return f"Basic {base64.b64encode(text.encode()).decode()}"


@dataclass(frozen=True)
class Reply:
    """What came back."""

    status: int
    #: Names are in lower case; a header that stands twice is joined.
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    @property
    def problem(self) -> str:
        """The name of a problem, empty where it is none."""
        kind = self.headers.get("content-type", "")
        return str(self.json["type"]).rpartition("/")[2] if "problem+json" in kind else ""


class Wire:
    """A connection to the exporter, as bytes."""

    def __init__(self, exporter: Exporter) -> None:
        place = urlsplit(exporter.url)
        self.host = place.netloc
        self._socket = socket.create_connection((place.hostname, place.port), PATIENCE_SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._lines = self._socket.makefile("rb")

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._socket.close()

    def head(self, method: str, path: str, **headers: str) -> bytes:
        """Return the head of a request, as `root` sends it to the host unless told otherwise."""
        named = {"Host": self.host, "Authorization": basic("root")}
        named |= {name.replace("_", "-"): value for name, value in headers.items()}
        lines = [f"{method} {path} HTTP/1.1", *(f"{n}: {v}" for n, v in named.items() if v)]
        return "\r\n".join([*lines, "", ""]).encode()

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def reply(self, *, bare: bool = False) -> Reply:
        """Read one answer; its body is as long as it says, and none if it is `bare`."""
        status = int(self._lines.readline().split()[1])
        headers: dict[str, str] = {}
        while (line := self._lines.readline().strip()) != b"":
            name, _, value = line.decode("latin-1").partition(":")
            before = headers.get(name.lower())
            headers[name.lower()] = f"{before}, {value.strip()}" if before else value.strip()
        length = 0 if bare else int(headers.get("content-length", 0))
        return Reply(status, headers, self._lines.read(length))

    @property
    def ended(self) -> bool:
        """Whether the exporter hangs up."""
        try:
            return self._lines.read(1) == b""
        except ConnectionResetError:
            return True


def ask(
    exporter: Exporter, method: str, path: str, body: bytes | None = None, **headers: str
) -> Reply:
    """Send one request on a connection of its own."""
    more = {} if body is None else {"Content_Length": str(len(body))}
    with Wire(exporter) as wire:
        wire.send(wire.head(method, path, **more, **headers) + (body or b""))
        return wire.reply(bare=method == "HEAD")


def post(exporter: Exporter, path: str, body: bytes = b"{}", **headers: str) -> Reply:
    """Ask for a change, as JSON unless told otherwise."""
    return ask(exporter, "POST", path, body, **{"Content_Type": "application/json", **headers})
