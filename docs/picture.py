"""Draws jobs.svg, the picture in the README: a terminal that looks at a running demo.

Run by `make picture`, on a machine that can run QEMU. What it shows is what the commands said.
"""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from threading import Timer
from typing import Any

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

PICTURE = Path(__file__).parent / "jobs.svg"
COMMANDS: tuple[tuple[str, ...], ...] = (("jobs", "--watch"), ("chain", "demo-web", "disk0"))
COLUMNS = 136
#: How long `--watch` is watched: it takes some refreshes until it knows the rate of a job.
WATCHED_SECONDS = 9.0
LONGEST_SECONDS = 120.0
PROGRAM = str(Path(sys.executable).parent / "qemu-block-exporter")

_BLACK, _RED, _GREEN, _YELLOW = (22, 27, 34), (255, 123, 114), (126, 231, 135), (255, 214, 102)
_BLUE, _MAGENTA, _CYAN, _WHITE = (121, 192, 255), (210, 168, 255), (86, 212, 221), (230, 237, 243)
_THEME = TerminalTheme(
    (13, 17, 23),
    (201, 209, 217),
    [_BLACK, _RED, _GREEN, _YELLOW, _BLUE, _MAGENTA, _CYAN, _WHITE],
    [(72, 79, 88), _RED, _GREEN, _YELLOW, _BLUE, _MAGENTA, _CYAN, _WHITE],
)
#: As rich has it, but with the fonts of the reader's machine: a picture loads nothing from elsewhere.
_SVG = """\
<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg" role="img">
<!-- Made by `make picture`; do not edit. -->
<style>
.{unique_id}-matrix {{
    font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
    font-size: {char_height}px;
    line-height: {line_height}px;
}}
.{unique_id}-title {{
    font-family: ui-sans-serif, system-ui, "DejaVu Sans", sans-serif;
    font-size: 16px;
}}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix" xml:space="preserve">
{matrix}
</g>
</g>
</svg>
"""


def main() -> None:
    """Run the demo until its jobs are worth a picture, and draw it."""
    with _demo() as url:
        _wait_for_jobs(url)
        shown = {
            command: _on_a_terminal([*command, f"--url={url}"], watched="--watch" in command)
            for command in COMMANDS
        }
    PICTURE.write_text(draw(shown))


def draw(shown: Mapping[tuple[str, ...], str]) -> str:
    """Return the SVG of commands, each with the lines that it printed to a terminal."""
    console = Console(
        record=True, width=COLUMNS, file=StringIO(), force_terminal=True, legacy_windows=False
    )
    for number, (command, said) in enumerate(shown.items()):
        prompt = Text.assemble(("$ ", "bold green"), " ".join(["qemu-block-exporter", *command]))
        console.print(*([""] if number else []), prompt, sep="\n", highlight=False)
        console.print(Text.from_ansi(said), soft_wrap=True)
    return console.export_svg(
        title="qemu-block-exporter", theme=_THEME, code_format=_SVG, unique_id="qbe"
    )


def last_frame(said: str) -> str:
    """Return what a terminal shows in the end of a table that was drawn again in its place."""
    frame = re.split(r"\x1b\[2K", said.replace("\r", ""))[-1]
    return re.sub(r"\x1b\[\?\d+[hl]|\^C", "", frame).rstrip()


@contextmanager
def _demo() -> Iterator[str]:
    """Run the demo, and give the URL of its exporter."""
    command = [PROGRAM, "demo", "--web.listen-address=127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        try:
            for line in demo.stdout:
                if "SIMULATED" in line:
                    sys.exit("the picture needs a QEMU: these VMs are simulated")
                if found := re.match(r" +(http://[\d.:]+)/$", line):
                    yield found[1]
                    return
            sys.exit("the demo did not start")
        finally:
            demo.send_signal(signal.SIGINT)
            demo.stdout.read()


def _wait_for_jobs(url: str) -> None:
    """Wait for a job that is ready, beside two that will still be running at the end of the watch."""
    end = time.monotonic() + LONGEST_SECONDS
    while time.monotonic() < end:
        done = subprocess.run(
            [PROGRAM, "jobs", "--json", f"--url={url}"], capture_output=True, text=True, check=True
        )
        jobs: dict[str, dict[str, Any]] = {
            job["vm"]: job for job in json.loads(done.stdout)["jobs"] if not job.get("outcome")
        }
        if len(jobs) == 3 and jobs["demo-mail"]["ready"] and _share(jobs["demo-db"]) < 0.6:
            return
        time.sleep(0.5)
    sys.exit("no moment was worth a picture")


def _share(job: dict[str, Any]) -> float:
    return float(job["offset_bytes"] / (job["length_bytes"] or 1))


def _on_a_terminal(arguments: list[str], *, watched: bool) -> str:
    """Return what a command says to a terminal; one that is watched is ended with Ctrl-C."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"COLUMNS": str(COLUMNS), "LINES": "40", "TERM": "xterm-256color"}
    with subprocess.Popen(
        [PROGRAM, *arguments], stdin=theirs, stdout=theirs, env=environment, close_fds=True
    ) as process:
        os.close(theirs)
        if watched:
            Timer(WATCHED_SECONDS, process.send_signal, [signal.SIGINT]).start()
        said = b""
        try:
            while part := os.read(ours, 65536):
                said += part
        except OSError:  # the other end is closed
            pass
        finally:
            os.close(ours)
    return last_frame(said.decode())


if __name__ == "__main__":
    main()
