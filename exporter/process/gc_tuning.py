"""Tunes Python's garbage collector: long-lived objects are frozen, garbage is collected often.

A full collection examines every live container and blocks the event loop meanwhile: 0.15 s with a
thousand VMs. Nearly all containers live as long as their VM. So they are frozen, which exempts them
from collections, and what scrapes leave behind is collected often, while there is little of it.
"""

from __future__ import annotations

import gc

#: How many containers may be allocated and not freed before Python collects by itself: more than
#: a fleet needs. First contact with a thousand VMs of 4 disks x 3 layers allocates some 200,000.
_YOUNG = 300_000
#: So many are examined in a few milliseconds; the first contact with a fleet leaves more.
_LITTLE = 20_000
#: Targets that are gone may have left cycles among the frozen objects. After this many of them, a
#: full collection is worth its time.
_GONE_LIMIT = 1000


class GcTuner:
    """Decides when garbage is collected, and which objects are frozen."""

    def __init__(self) -> None:
        """Change the garbage collection of this process, permanently."""
        gc.set_threshold(_YOUNG, 10, 10)
        gc.collect()
        gc.freeze()
        self._gone = 0

    def settle(self, gone: int) -> None:
        """Collect after a sweep; `gone` is the number of targets that went away since the last."""
        self._gone += gone
        if self._gone >= _GONE_LIMIT:
            self._gone = 0
            gc.unfreeze()
            gc.collect()
            gc.freeze()
        elif gc.get_count()[0] >= _LITTLE:
            gc.freeze()
        else:
            gc.collect(1)
            if _old() >= _LITTLE // 4:
                gc.collect()
                # Done rarely: a frozen cycle that becomes garbage later is not collected.
                if _old() >= _LITTLE // 8:
                    gc.freeze()


def _old() -> int:
    return len(gc.get_objects(generation=2))
