"""Checks of passwords by bcrypt, one at a time, and the verdicts of earlier ones.

A check is as slow as the hash says. So each is made once, a user who was let in is never forgotten
for those who were not, and those who wait take turns by the address that they come from, and by the user that they say they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import os
import secrets
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import bcrypt
from msgspec import Struct

from exporter.web.turns import Turns

#: Checks that may wait: of one address, and of all.
WAITING_OF_ONE = 16
WAITING_OF_ALL = 256
#: Wrong passwords that are remembered.
REMEMBERED = 4096
_LONGEST_BYTES = 72
#: How much nicer than the others the thread is that checks. [nice(2)]
_NICENESS = 10
#: A salt and a digest that no known password has: for users that there are not.
_NOBODY = "." * 53


def _give_way() -> None:
    """Lower the priority of this thread below the event loop: it serves unauthenticated clients."""
    # Of a thread alone, on Linux. Where a sandbox forbids it, passwords are checked all the same.
    with contextlib.suppress(OSError):
        os.nice(_NICENESS)


class _Check(Struct, eq=False):
    name: str
    hashed: bytes
    password: bytes
    digest: bytes
    #: None is the answer of a check that had to give way.
    verdict: asyncio.Future[bool | None]


class Passwords:
    """Checks passwords, and remembers the verdicts without the passwords."""

    def __init__(
        self,
        check: Callable[[bytes, bytes], bool] = bcrypt.checkpw,
        *,
        waiting_of_one: int = WAITING_OF_ONE,
        waiting_of_all: int = WAITING_OF_ALL,
        remembered: int = REMEMBERED,
    ) -> None:
        self._check = check
        self._remembered = remembered
        #: User -> digest of the last good check.
        self._good: dict[str, bytes] = {}
        self._bad: OrderedDict[bytes, None] = OrderedDict()
        self._secret = secrets.token_bytes(32)
        #: Digest -> the check that runs or waits.
        self._open: dict[bytes, _Check] = {}
        self._waiting: Turns[_Check] = Turns(waiting_of_one, waiting_of_all)
        self._worker: asyncio.Task[None] | None = None
        # A thread of its own: the shared ones may all compress.
        self._thread = ThreadPoolExecutor(1, "bcrypt", _give_way)

    async def right(
        self, users: Mapping[str, str], name: str, password: bytes, address: str
    ) -> bool | None:
        """Return whether `password` is that of `name`; None where too many checks wait."""
        # bcrypt repeats what ends with a NUL: `a` would be let in with `a NUL a` too.
        if len(password) > _LONGEST_BYTES or b"\0" in password:
            return False
        hashed = (users.get(name) or self._nobody(users, name)).encode()
        digest = self._digest(name.encode("utf-8", "surrogateescape"), hashed, password)
        if hmac.compare_digest(self._good.get(name, b""), digest):
            return True
        if digest in self._bad:
            self._bad.move_to_end(digest)
            return False
        check = self._open.get(digest)
        if check is None:
            verdict = asyncio.get_running_loop().create_future()
            check = _Check(name, hashed, password, digest, verdict)
            if not self._line_up(check, address):
                return None
        # A client that hangs up must not take the verdict away from others.
        if not await asyncio.shield(check.verdict):
            return check.verdict.result()
        if name in users:
            self._good[name] = digest
            if len(self._good) > len(users):
                self._good = {user: good for user, good in self._good.items() if user in users}
        return name in users

    async def close(self) -> None:
        """End the thread, and leave those who wait without a verdict."""
        if self._worker is not None:
            self._worker.cancel()
        self._thread.shutdown(wait=False)

    def _nobody(self, users: Mapping[str, str], name: str) -> str:
        """Return a hash for an unknown user, as slow as that of one that there is.

        Of which one depends on the name alone: what takes as long each time tells nothing.
        """
        number = int.from_bytes(self._digest(name.encode("utf-8", "surrogateescape")))
        version_and_cost = list(users.values())[number % len(users)][:7]
        return version_and_cost + _NOBODY

    def _digest(self, *parts: bytes) -> bytes:
        """Return what stands for `parts`: with their lengths, or two of them could be cut anew."""
        mac = hmac.new(self._secret, digestmod=hashlib.sha256)
        for part in parts:
            mac.update(len(part).to_bytes(8) + part)
        return mac.digest()

    def _line_up(self, check: _Check, address: str) -> bool:
        waits, gave_up = self._waiting.add(check, address, check.name)
        if gave_up is not None:
            del self._open[gave_up.digest]
            gave_up.verdict.set_result(None)
        if not waits:
            return False
        self._open[check.digest] = check
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return True

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            check = self._waiting.take()
            good = await loop.run_in_executor(self._thread, self._compare, check)
            if not good:
                self._bad[check.digest] = None
                if len(self._bad) > self._remembered:
                    self._bad.popitem(last=False)
            del self._open[check.digest]
            check.verdict.set_result(good)

    def _compare(self, check: _Check) -> bool:
        try:
            return self._check(check.password, check.hashed)
        except ValueError:
            return False
