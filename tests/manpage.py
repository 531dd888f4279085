"""The man page, written from the parsers. [man(7)]"""

from __future__ import annotations

import argparse
import re

from exporter import __version__
from exporter.ctl.commands import EXIT_CODES_HELP, OPERATING
from tests.parsers import OPERATORS, serving_commands, serving_parser

#: When something in it last changed that is not a flag.
_DATE = "2026-11-24"
_HEAD = """\
.\\" Generated from the parsers by `make golden`; do not edit.
.TH QEMU\\-BLOCK\\-EXPORTER 1 {date} "qemu\\-block\\-exporter {version}" "User Commands"
.SH NAME
qemu\\-block\\-exporter \\- Prometheus exporter for the block layer of QEMU virtual machines
.SH SYNOPSIS
.B qemu\\-block\\-exporter
.RB [ serve | once | demo ]
.RI [ FLAGS ]
.PP
.B qemu\\-block\\-exporter
.I COMMAND
.RI [ FLAGS ]
.RI [ ARGUMENTS ]
.SH DESCRIPTION
Speaks QMP to the monitor socket of each virtual machine, and serves what it says of disks, backing
chains and block jobs as Prometheus metrics. The commands of operators ask a running exporter by its
HTTP API.
.PP
A QMP socket serves one client at a time: give each virtual machine one for the exporter, such as
.PP
.EX
qemu\\-system\\-x86_64 ... \\-qmp unix:/run/qemu\\-block\\-exporter/web1.sock,server=on,wait=off
.EE
"""
_TAIL = """\
.SH SIGNALS
.TP
.B SIGHUP
Read the configuration again. What is wrong with it is logged, and the old one stays.
.TP
.BR SIGTERM ", " SIGINT
End, after what is being answered.
.SH FILES
.TP
.I /run/qemu\\-block\\-exporter/*.sock
The monitor sockets that are collected unless flags or a file say otherwise.
.TP
.I /etc/default/qemu\\-block\\-exporter
Flags of the service, as ARGS="...".
.TP
.I /var/lib/qemu\\-block\\-exporter
What was asked for by the admin API in the last 7 days.
.SH SEE ALSO
.BR qemu (1),
.BR qemu\\-qmp\\-ref (7),
.BR prometheus (1)
"""


def manpage() -> str:
    """Return the whole page."""
    parts = [_HEAD.format(date=_DATE, version=__version__)]
    parts.append(".SH SERVING COMMANDS\n")
    parts += [
        f".TP\n.B {name}\n{_text(_sentence(text))}\n" for name, text in serving_commands().items()
    ]
    parts.append(".SH FLAGS\n")
    for group in serving_parser()._action_groups:
        parts += _group(group, "SS")
    parts.append(".SH OPERATORS' COMMANDS\n")
    for name, text in OPERATING.items():
        usage = " ".join(
            _positional(action) for action in OPERATORS[name]._actions if not action.option_strings
        )
        parts.append(f".SS {name} {usage}".rstrip() + f"\n{_text(_sentence(text))}\n")
        # The flags that all have stand once, below.
        for group in OPERATORS[name]._action_groups:
            if group.title != "the exporter":
                parts += [
                    _action(action) for action in group._group_actions if action.dest != "help"
                ]
    parts.append(".SS Flags of all of them\n")
    common = next(g for g in OPERATORS["vms"]._action_groups if g.title == "the exporter")
    parts += [_action(action) for action in common._group_actions]
    parts.append(".SH EXIT STATUS\nOf operators' commands:\n")
    parts += [f".TP\n.B {code}\n{_text(text)}\n" for code, text in exit_codes()]
    parts.append(
        ".PP\nServing: 0 when it was told to end, 1 for a wrong setting, 2 for a wrong flag.\n"
    )
    return "".join([*parts, _TAIL])


def exit_codes() -> list[tuple[str, str]]:
    """Return each exit code, with what it means."""
    found = re.findall(r"^  (\d+) +(.+(?:\n {5,}.+)*)", EXIT_CODES_HELP, re.MULTILINE)
    return [(code, " ".join(text.split())) for code, text in found]


def _group(group: argparse._ArgumentGroup, macro: str) -> list[str]:
    if not group._group_actions:
        return []
    title = "general" if group.title == "options" else str(group.title)
    return [f".{macro} {_sentence(title)[:-1]}\n", *map(_action, group._group_actions)]


def _action(action: argparse.Action) -> str:
    if action.help == argparse.SUPPRESS:
        return ""
    names = ", ".join(f"\\fB{_text(name)}\\fR" for name in action.option_strings)
    value = _value(action)
    if not names:
        names = value
    elif value:
        names += f" {value}" if " " not in value else f" {{{value.replace(' ', ' | ')}}}"
    return f".TP\n{names}\n{_text(_sentence(action.help or ''))}\n"


def _value(action: argparse.Action) -> str:
    if action.option_strings and action.nargs == 0:
        return ""
    if isinstance(action, argparse.BooleanOptionalAction):
        return ""
    if action.choices and not action.metavar:
        return " ".join(f"\\fB{_text(str(choice))}\\fR" for choice in action.choices)
    return f"\\fI{_text(str(action.metavar or action.dest.upper()))}\\fR"


def _positional(action: argparse.Action) -> str:
    name = str(action.metavar)
    return f"[{name}]" if action.nargs == "?" else name


def _sentence(text: str) -> str:
    return (
        f"{text[0].upper()}{text[1:].rstrip('.')}." if not text.startswith("qbe-") else f"{text}."
    )


def _text(text: str) -> str:
    """Write what man(7) would take for its own as it is meant."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{text}" if text.startswith((".", "'")) else text
