"""How flags are parsed: a mistake prints one line and exits with code 2."""

from __future__ import annotations

import argparse
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` with one-line error messages."""

    def error(self, message: str) -> NoReturn:
        """Print what is wrong in one line and exit; the list of all flags would bury it."""
        self.exit(2, f"{self.prog}: {message}; --help lists all flags\n")


def seconds(text: str) -> float:
    """Parse a positive number of seconds.

    Raises:
        argparse.ArgumentTypeError: `text` is not one.
    """
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a positive number of seconds, got {text!r}")
    return value
