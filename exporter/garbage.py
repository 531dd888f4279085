"""The collector of cycles, kept away from what stays.

Python's collector looks at every container that lives, now and then, and stops the event loop for
that: 0.15 s with a thousand VMs. Nearly all of them live as long as their VM does. So what is there
after a sweep is looked at once, while it is little, and then taken out of its sight.
"""

from __future__ import annotations

import gc

#: Containers made and not freed before the collector looks by itself: more than a fleet is.
_YOUNG = 200_000
#: So many new ones are looked at in some milliseconds; the first contact with a fleet leaves more.
_LITTLE = 20_000
#: What left may have left cycles behind among what is out of sight; they are worth a long look.
_GONE_LIMIT = 1000


class Keeper:
    """Decides when the collector looks, and at what."""

    def __init__(self) -> None:
        """Change how this process collects, for good."""
        gc.set_threshold(_YOUNG, 10, 10)
        gc.collect()
        gc.freeze()
        self._gone = 0

    def settle(self, gone: int) -> None:
        """Take what is there out of sight; `gone` targets have left since the last time."""
        self._gone += gone
        if self._gone >= _GONE_LIMIT:
            self._gone = 0
            gc.unfreeze()
            gc.collect()
        elif gc.get_count()[0] < _LITTLE:
            gc.collect(1)
        gc.freeze()
