"""Completions for shells, written from the parsers by shtab."""

from __future__ import annotations

import argparse
import re

import shtab

from exporter.ctl.commands import OPERATING
from tests.parsers import OPERATORS, serving_commands, serving_parser

#: Where each shell's stand, here and below share/ of what is installed.
PLACES = {
    "bash": ("qemu-block-exporter.bash", "bash-completion/completions/qemu-block-exporter"),
    "fish": ("qemu-block-exporter.fish", "fish/vendor_completions.d/qemu-block-exporter.fish"),
    "zsh": ("_qemu-block-exporter", "zsh/site-functions/_qemu-block-exporter"),
}
_FILES = {"FILE": shtab.FILE, "DIR": shtab.DIRECTORY}
_HEAD = "# Generated from the parsers by `make golden`, with shtab; do not edit."


def completions(shell: str) -> str:
    """Return the completions for one shell."""
    # The program reads a command's flags by a parser of its own; shtab wants them below one.
    whole = serving_parser()
    commands = whole.add_subparsers(dest="command")
    for name, text in (serving_commands() | OPERATING).items():
        one = OPERATORS[name] if name in OPERATING else serving_parser()
        one.prog = f"qemu-block-exporter {name}"
        one.description = text
        commands._name_parser_map[name] = one
        commands._choices_actions.append(commands._ChoicesPseudoAction(name, (), text))
        _complete_files(one)
    _complete_files(whole)
    text = shtab.complete(whole, shell)
    # How to install them by hand is in our own pages.
    return re.sub(r"# AUTOMATICALLY GENERATED[^\n]*\n(#[^\n]*\n)*", f"{_HEAD}\n", text, count=1)


def _complete_files(parser: argparse.ArgumentParser) -> None:
    for action in parser._actions:
        if action.metavar in _FILES:
            action.complete = _FILES[action.metavar]  # type: ignore[attr-defined]
