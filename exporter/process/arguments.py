"""How flags are read: a mistake is one line, and exit code 2."""

from __future__ import annotations

import argparse
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that is brief about mistakes."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line; all flags would bury it."""
        self.exit(2, f"{self.prog}: {message}; --help lists all flags\n")


def seconds(text: str) -> float:
    """Return a number of seconds above 0.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return value
