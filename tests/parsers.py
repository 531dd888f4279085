"""The program's two kinds of parsers, as those who describe its command line want them."""

from __future__ import annotations

import argparse

from exporter.cli import serve_flags
from exporter.ctl.commands import OPERATING
from exporter.ctl.options import parser

OPERATORS = {name: parser(name) for name in OPERATING}


def serving_parser() -> argparse.ArgumentParser:
    """Return the parser of the serving commands, without the name of the command."""
    made = serve_flags.parser()
    command = next(action for action in made._actions if action.dest == "command")
    made._remove_action(command)
    made._positionals._group_actions.remove(command)
    return made


def serving_commands() -> dict[str, str]:
    """Return the serving commands, each with what it does."""
    return dict(serve_flags.SERVING)


def parse(words: list[str]) -> argparse.Namespace:
    """Return what the program reads from the words behind its name.

    Raises:
        SystemExit: it does not take them, or prints something and ends.
    """
    command, *others = words or [""]
    if command in OPERATORS:
        return OPERATORS[command].parse_args(others)
    return serve_flags.parser().parse_args(words)
