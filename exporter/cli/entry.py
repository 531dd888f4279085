"""The entry point: decides which half of the program is called for, and loads only that."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from exporter.ctl import OPERATING
from exporter.errors import ConfigError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code: 1 for a wrong setting, 2 for a wrong flag.

    The exit codes of the operators' commands are in `exporter.ctl.commands`.
    """
    given = sys.argv[1:] if arguments is None else arguments
    try:
        if given and given[0] in OPERATING:
            from exporter.ctl import main as ctl  # noqa: PLC0415  # rich, and no collecting

            return ctl.run(given[0], given[1:])
        from exporter.cli import serve  # noqa: PLC0415  # collecting, and no rich

        return serve.run(given)
    except ConfigError as error:
        print(f"qemu-block-exporter: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
