"""Who is next: addresses take turns, and so do the names that one address comes with."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Turns(Generic[T]):
    """What waits, by address and name, up to a number for each address and for all."""

    def __init__(self, of_one: int, of_all: int) -> None:
        self._of_one = of_one
        self._of_all = of_all
        #: Address -> name -> what waits; the first of each is next.
        self._waiting: dict[str, dict[str, deque[T]]] = {}

    def __len__(self) -> int:
        return sum(map(_size, self._waiting.values()))

    def add(self, item: T, address: str, name: str) -> tuple[bool, T | None]:
        """Return whether an item may wait, and which other item gave up its place for it.

        A full address gives up the newest of the name that has most, all addresses together that of
        the address that has most; unless the newcomer would then have as many.
        """
        names = self._waiting.get(address, {})
        own = names.get(name, deque())
        gave_up = None
        if _size(names) >= self._of_one:
            if not names or len(_longest(names)) <= len(own) + 1:
                return False, None
            gave_up = _longest(names).pop()
        elif len(self) >= self._of_all:
            most = max(self._waiting.values(), key=_size)
            if _size(most) <= _size(names) + 1:
                return False, None
            gave_up = _longest(most).pop()
        own.append(item)
        names[name] = own
        self._waiting[address] = names
        return True, gave_up

    def take(self) -> T:
        """Return the next item, which waits no more; its address and its name are last then.

        Raises:
            StopIteration: nothing waits.
        """
        address = next(iter(self._waiting))
        names = self._waiting.pop(address)
        name = next(iter(names))
        own = names.pop(name)
        item = own.popleft()
        if own:
            names[name] = own
        if names:
            self._waiting[address] = names
        return item


def _size(names: dict[str, deque[T]]) -> int:
    return sum(map(len, names.values()))


def _longest(names: dict[str, deque[T]]) -> deque[T]:
    return max(names.values(), key=len)
