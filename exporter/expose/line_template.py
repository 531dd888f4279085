"""Lines of numbers that a scrape fills in: all of one kind of records in one formatting. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from exporter.errors import ProtocolError

_UNSIGNED = 1 << 64
#: Between families; a byte that no UTF-8 text has.
_SEPARATOR = b"\xff"


def unsigned(value: int) -> int:
    """Return an integer as QEMU meant it.

    Every integer in the block layer's replies is unsigned: one that arrives below zero went
    through a signed type (`write_threshold`).

    Raises:
        ProtocolError: it has more than 64 bits.
    """
    if -(_UNSIGNED >> 1) <= value < _UNSIGNED:
        return value % _UNSIGNED
    raise ProtocolError("sent an integer of more than 64 bits")


def number(value: float, divisor: int = 1) -> str:
    """Return a number as both formats want it; integers stay exact."""
    if value is True or value is False:
        return "1" if value else "0"
    if isinstance(value, int):
        value = unsigned(value)
        return str(value) if divisor == 1 else repr(value / divisor)
    return repr(value / divisor)


@dataclass(frozen=True, slots=True)
class LineTemplate:
    """The lines of some families for some records, each with a place for its number."""

    text: bytes
    #: Labels of the records, without braces.
    identities: tuple[str, ...]
    #: Where in the flat list of values, family by family, there is none.
    missing: tuple[int, ...]

    def fits(self, identities: tuple[str, ...], missing: tuple[int, ...]) -> bool:
        """Whether these are the lines of such values."""
        return self.missing == missing and self.identities == identities

    def fill(self, values: tuple[float, ...]) -> list[bytes]:
        """Return the lines of each family."""
        return (self.text % values).split(_SEPARATOR)


def template(
    names: Sequence[str], identities: tuple[str, ...], missing: tuple[int, ...], divisor: int
) -> LineTemplate:
    """Return the lines of families `names` for the records `identities`."""
    place = "%d" if divisor == 1 else "%r"
    gone = frozenset(missing)
    families = [
        "".join(
            [
                f"{name}{{{identity}}}".replace("%", "%%") + f" {place}\n"
                for record, identity in enumerate(identities)
                if family * len(identities) + record not in gone
            ]
        ).encode()
        for family, name in enumerate(names)
    ]
    return LineTemplate(_SEPARATOR.join(families), identities, missing)


def flatten(
    values: Sequence[tuple[int | None, ...]], divisor: int
) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Return the values of records family by family, and where in them there was none.

    >>> flatten([(1, None), (3, 4)], 1)
    ((1, 3, 4), (2,))
    """
    flat: list[int | None] = list(chain.from_iterable(zip(*values, strict=True)))
    missing: tuple[int, ...] = ()
    known: list[int]
    if None in flat:
        missing = tuple([place for place, value in enumerate(flat) if value is None])
        known = [value for value in flat if value is not None]
    else:
        known = flat  # type: ignore[assignment]
    if known and (min(known) < 0 or max(known) >= _UNSIGNED):
        known = [unsigned(value) for value in known]
    return tuple(known if divisor == 1 else [value / divisor for value in known]), missing
