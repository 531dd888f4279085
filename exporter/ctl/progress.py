"""The progress of a job: one line that is redrawn on a terminal, otherwise a line per change."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Self

from rich.console import Group, RenderableType
from rich.text import Text

from exporter.api import Job
from exporter.ctl import tables, text
from exporter.ctl.rates import Rates
from exporter.ctl.screen import Screen
from exporter.ctl.text import clean

#: Without a terminal, a line is written each time that so much more is done.
_STEP_PERCENT = 10


class Progress:
    """Shows a job's progress on standard error; with --json, each of its states on standard output."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._show: Callable[[RenderableType], None] | None = None
        self._stack = ExitStack()
        self._line: RenderableType = ""
        self._last: Job | None = None
        self._said = ""
        self._step = -1
        self._trouble = ""

    def __enter__(self) -> Self:
        console = self._screen.err
        if self._screen.in_place(console):
            self._show = self._stack.enter_context(self._screen.live(console))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def job(self, job: Job, rates: Rates) -> None:
        """Show the present state of a job."""
        if self._trouble:
            self._trouble = ""
            if not self._show:
                self._screen.note("the exporter answers again")
        if self._screen.json:
            if job != self._last:
                self._screen.result(job, "")
            self._last = job
            return
        if self._show:
            self._line = tables.job_line(job, rates)
            self._show(self._line)
            return
        step = (text.whole_percent(job) or 0) // _STEP_PERCENT
        state = text.state(job)
        if (state, step) != (self._said, self._step):
            far = text.percent(job)
            left = text.duration(rates.seconds_left(job))
            more = f" {far}, ETA {left}" if far.endswith("%") and job.outcome is None else ""
            self._screen.note(f"{clean(job.job_id)}: {clean(state)}{more}")
        self._said, self._step = state, step

    def trouble(self, reason: str) -> None:
        """Show why the job's state is unknown now; a repeated reason is shown once."""
        if reason == self._trouble:
            return
        self._trouble = reason
        text_ = f"retrying: {reason}"
        if self._show:
            self._show(Group(self._line, Text(clean(text_, text.SENTENCE_LIMIT), style="yellow")))
        else:
            self._screen.note(text_)
