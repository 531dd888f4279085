"""The operators' commands, in this process or as a process of their own."""

from __future__ import annotations

import asyncio
import os
import pty
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from exporter.ctl import main, options
from tests.fakeapi import FakeApi
from tests.program import COMMAND

#: Polls follow each other at once.
FAST = "--interval=0.001"


class Shell:
    """Runs commands in this process, against a fake API."""

    def __init__(self, api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
        self.api = api
        self._capsys = capsys
        self.out = self.err = ""

    async def __call__(self, command: str, *arguments: str) -> int:
        """Return the exit code of a command."""
        flags = options.parse(command, [f"--url={self.api.url}", *arguments])
        self._capsys.readouterr()
        code = await main.operate(flags)
        self.out, self.err = self._capsys.readouterr()
        return code


@asynccontextmanager
async def program(
    *arguments: str, out: int = asyncio.subprocess.PIPE, err: int = asyncio.subprocess.PIPE
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run the program as a process, which is ended when it is left."""
    process = await asyncio.create_subprocess_exec(*COMMAND, *arguments, stdout=out, stderr=err)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def ran(*arguments: str) -> tuple[int | None, str, str]:
    """Run the program to its end: exit code, standard output and standard error."""
    async with program(*arguments) as process:
        out, err = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode, out.decode(), err.decode()


class Terminal:
    """A terminal in which a command runs."""

    def __init__(self, columns: int = 160, **env: str) -> None:
        self._columns = str(columns)
        self._env = env
        self.text = ""
        self.process: asyncio.subprocess.Process | None = None

    async def run(self, *arguments: str) -> int:
        """Return the exit code of a command; `text` is all that the terminal was sent."""
        ours, theirs = pty.openpty()
        env = {**os.environ, "TERM": "xterm", "COLUMNS": self._columns, "LINES": "50"}
        env.pop("NO_COLOR", None)
        self.process = await asyncio.create_subprocess_exec(
            *COMMAND, *arguments, stdin=theirs, stdout=theirs, stderr=theirs,
            env={**env, **self._env},
        )  # fmt: skip
        os.close(theirs)
        reading = asyncio.create_task(asyncio.to_thread(self._read, ours))
        code = await asyncio.wait_for(self.process.wait(), 60)
        await reading
        os.close(ours)
        return code

    def _read(self, end: int) -> None:
        while True:
            try:
                chunk = os.read(end, 1 << 16)
            except OSError:  # nobody is at the other end any more
                return
            self.text += chunk.decode("utf-8", "replace")

    @property
    def plain(self) -> str:
        """The text without what colours it and moves the cursor."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.text)
