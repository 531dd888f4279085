"""The terminal: results go to standard output, everything else to standard error."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

import msgspec
from msgspec import Struct
from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from exporter.ctl.text import SENTENCE_LIMIT, clean
from exporter.ctl.words import PROGRAM

#: Without a terminal no line is ever cut or wrapped.
_ENDLESS_COLUMNS = 100_000
#: Longest line of a note.
_NOTE_LIMIT = 4 * SENTENCE_LIMIT


class Screen:
    """Standard output and standard error; only printable text is written to them."""

    def __init__(self, *, json: bool) -> None:
        self.json = json
        self.out = _console(sys.stdout)
        self.err = _console(sys.stderr)
        #: Whether writing to standard output has failed.
        self.broken = False

    def result(self, value: Struct, shown: RenderableType) -> None:
        """Print a result: `shown` for a person or, with --json, `value` as one line of JSON."""
        if self.json:
            text = json.dumps(msgspec.to_builtins(value))
            self._write(self.out, Text(text.replace("\x7f", "\\u007f")), wrap=False)
        elif isinstance(shown, str):
            self._write(self.out, _sentences(shown), wrap=False)
        else:
            self._write(self.out, shown, wrap=True)

    def note(self, text: str, style: str = "") -> None:
        """Print a note on standard error."""
        self._write(self.err, _sentences(text, style), wrap=False)

    def in_place(self, console: Console) -> bool:
        """Whether what `console` shows can be redrawn in place."""
        return console.is_terminal and not console.is_dumb_terminal and not self.json

    @contextmanager
    def live(self, console: Console) -> Iterator[Callable[[RenderableType], None]]:
        """Yield a function that shows something in place of what it showed before."""
        with Live(
            console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
        ) as live:
            yield lambda shown: live.update(shown, refresh=True)

    def _write(self, console: Console, shown: RenderableType, *, wrap: bool) -> None:
        console.print(shown, soft_wrap=not wrap)
        if not isinstance(console.file, io.StringIO):
            return
        lines = [line.rstrip(" ") for line in console.file.getvalue().splitlines()]
        console.file.seek(0)
        console.file.truncate()
        stream = sys.stdout if console is self.out else sys.stderr
        if stream is None:
            return  # the parent process had closed it
        try:
            stream.write("".join(f"{line}\n" for line in lines))
            stream.flush()
        except OSError as error:
            # Python would try to write the rest again when the process ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            if console is self.out:
                self.broken = True
                self.note(f"{PROGRAM}: standard output: {error.strerror}")


def _console(stream: TextIO | None) -> Console:
    """Return a console on `stream`; if that is not a terminal, one that collects the text for it."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    terminal = stream is not None and stream.isatty()
    return Console(
        file=stream if terminal else io.StringIO(),
        force_terminal=terminal,
        width=None if terminal else _ENDLESS_COLUMNS,
        markup=False,
        highlight=False,
        emoji=False,
    )


def _sentences(text: str, style: str = "") -> Text:
    lines = [clean(line, _NOTE_LIMIT) for line in text.split("\n")]
    return Text("\n".join(lines), style=style)
