"""The flags of the operators' commands."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec

from exporter.api import JOB_REQUESTS, JobId, JobRequest, Speed, verbs
from exporter.config import DEFAULT_PORT
from exporter.ctl.commands import EXIT_CODES_HELP, OPERATING
from exporter.ctl.words import PROGRAM, Prompt
from exporter.process import Parser, seconds

DEFAULT_URL = f"http://127.0.0.1:{DEFAULT_PORT}"
_WATCH_SECONDS = 2.0
_POLL_SECONDS = 1.0

Add = Callable[..., Any]


def parse(command: str, arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of `command`; a mistake ends the process with exit code 2."""
    return parser(command).parse_args(arguments)


def prompt(flags: argparse.Namespace) -> Prompt:
    """Return how to call the program again for the same exporter."""
    again = [f"--url={flags.url}"] if flags.url != DEFAULT_URL else []
    if flags.http_config_file is not None:
        again.append(f"--http.config.file={flags.http_config_file}")
    return Prompt(tuple(again))


def parser(command: str) -> Parser:
    """Build the argument parser of a command."""
    made = Parser(
        prog=f"{PROGRAM} {command}",
        description=f"{OPERATING[command][0].upper()}{OPERATING[command][1:]}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EXIT_CODES_HELP,
        allow_abbrev=False,
    )
    made.set_defaults(command=command)
    _OWN[command](made.add_argument)
    _common(made.add_argument_group("the exporter").add_argument)
    return made


def _common(add: Add) -> None:
    add("--url", type=_url, default=DEFAULT_URL, metavar="URL",
        help=f"URL of the exporter, with its route prefix (default: {DEFAULT_URL})")  # fmt: skip
    add("--http.config.file", dest="http_config_file", metavar="FILE",
        help="user, password and TLS, in the format of promtool's --http.config.file")  # fmt: skip
    add("--timeout", type=seconds, default=30.0, metavar="SECONDS",
        help="how long one request may take; waiting for a job has no limit (default: 30)")  # fmt: skip
    add("--json", action="store_true",
        help="print JSON: one document, or one line per change while waiting")  # fmt: skip


def _vms(add: Add) -> None:
    pass


def _jobs(add: Add) -> None:
    _name(add, "vm", "show only this VM's jobs", nargs="?")
    add("--watch", action="store_true", help="refresh until Ctrl-C")
    add("--interval", type=seconds, default=_WATCH_SECONDS, metavar="SECONDS",
        help="time between two refreshes (default: 2)")  # fmt: skip
    add("--all", action="store_true", help="also show jobs that ended more than an hour ago")


def _chain(add: Add) -> None:
    _name(add, "vm", "the VM")
    _name(add, "device", "show only this disk", nargs="?")


def _commit(add: Add) -> None:
    _name(add, "vm", "the VM")
    _name(add, "device", "the disk, as chain shows it")
    layer = "a node name or file as chain shows it, not a number"
    _name(add, "--top", f"merge this layer and all between it and the base: {layer}"
          " (default: the active layer)", metavar="LAYER")  # fmt: skip
    _name(add, "--base", f"merge into this layer: {layer} (default: the lowest)", metavar="LAYER")
    add("--job-id", dest="job_id", type=_job_id, metavar="ID",
        help="qbe-...; the same id never starts a second job, so a retry is safe (default: a new id,"
        " printed before anything is sent)")  # fmt: skip
    add("--no-job-id", dest="job_id", action="store_const", const="",
        help="for QEMU before 2.7, which names the job after its disk; a retry is then not safe")  # fmt: skip
    add("--speed", type=_speed, metavar="BYTES", help="limit in bytes per second")
    add("--allow-unseen-neighbours", dest="unseen_neighbours", action="store_const", const="allow",
        help="commit even while the layers of another VM are unknown")  # fmt: skip
    _dry_run(add)
    add("--wait", action="store_true", help="follow the job until it ends or is ready")
    add("--complete-when-ready", dest="complete_when_ready", action="store_true",
        help="follow the job, complete it when it is ready, and wait for its outcome")  # fmt: skip
    _poll(add)


def _complete(add: Add) -> None:
    _job(add)
    add("--wait", action="store_true", help="wait for the outcome of the job")
    add("--when-ready", dest="when_ready", action="store_true",
        help="wait until the job is ready, complete it, and wait for its outcome")  # fmt: skip


def _snapshot(add: Add) -> None:
    _name(add, "vm", "the VM")
    _name(add, "device", "the disk, as chain shows it")
    add("file", type=_path, metavar="FILE",
        help="absolute path of the new layer, a qcow2 file that is created on the exporter's host; a"
        " retry is safe: it finds the layer, or the file that was created for it")  # fmt: skip
    _dry_run(add)
    _poll(add)


def _changing(kind: type[JobRequest]) -> Callable[[Add], None]:
    """Return a function that adds the flags of a verb: the job, and the fields of its request."""

    def add_all(add: Add) -> None:
        _job(add)
        for name in kind.__struct_fields__:
            _FIELDS[name](add)

    return add_all


def _job(add: Add) -> None:
    _name(add, "vm", "the VM")
    _name(add, "job_id", "the job, as jobs shows it", metavar="JOB")
    _dry_run(add)
    _poll(add)


def _dry_run(add: Add) -> None:
    add("--dry-run", dest="dry_run", action="store_true", help="check everything, change nothing")


def _poll(add: Add) -> None:
    add("--interval", type=seconds, default=_POLL_SECONDS, help=argparse.SUPPRESS)


def _name(add: Add, name: str, text: str, **more: Any) -> None:
    if "metavar" not in more:
        more["metavar"] = name.upper()
    add(name, type=_text, help=text, **more)


def _text(given: str) -> str:
    try:
        given.encode()
    except UnicodeError:
        raise argparse.ArgumentTypeError(f"must be UTF-8, got {given!r}") from None
    if not given:
        raise argparse.ArgumentTypeError("must not be empty")
    return given


def _path(given: str) -> str:
    if not _text(given).startswith("/"):
        raise argparse.ArgumentTypeError(f"must be an absolute path, got {given!r}")
    return given


def _job_id(given: str) -> str:
    try:
        return msgspec.convert(given, JobId)
    except msgspec.ValidationError:
        raise argparse.ArgumentTypeError(
            f"must be qbe- and up to 59 letters, digits, '.', '_' and '-', got {given!r}"
        ) from None


def _speed(given: str) -> int:
    try:
        return msgspec.convert(int(given), Speed)
    except (ValueError, msgspec.ValidationError):
        raise argparse.ArgumentTypeError(
            f"must be a number of bytes per second, 0 or more, got {given!r}"
        ) from None


def _url(given: str) -> str:
    try:
        parts = urlsplit(_text(given))
        wrong = parts.scheme not in {"http", "https"} or not parts.hostname or parts.port == 0
    except ValueError:
        wrong = True
    if wrong or parts.query or parts.fragment or not given.isprintable() or " " in given:
        raise argparse.ArgumentTypeError(f"must be a URL such as {DEFAULT_URL}, got {given!r}")
    if "@" in parts.netloc:
        raise argparse.ArgumentTypeError(
            "must not contain a user: put it into --http.config.file, where other users of this"
            " host cannot see it"
        )
    return given


def _force(add: Add) -> None:
    add("--force", action=argparse.BooleanOptionalAction, default=None,
        help="a ready job needs one of the two: --no-force ends it with a consistent copy and"
        " without a pivot, --force ends it at once")  # fmt: skip


def _speed_bytes_per_second(add: Add) -> None:
    add("speed_bytes_per_second", type=_speed, metavar="BYTES",
        help="bytes per second, 0 for no limit")  # fmt: skip


#: Field of a request that changes a job -> function that adds the flag of the same name.
_FIELDS: dict[str, Callable[[Add], None]] = {
    "force": _force,
    "speed_bytes_per_second": _speed_bytes_per_second,
}
_OWN: dict[str, Callable[[Add], None]] = {
    "vms": _vms,
    "jobs": _jobs,
    "chain": _chain,
    **{kind.verb: _changing(kind) for kind in JOB_REQUESTS},
    verbs.Commit.verb: _commit,
    verbs.Complete.verb: _complete,
    verbs.Snapshot.verb: _snapshot,
}
