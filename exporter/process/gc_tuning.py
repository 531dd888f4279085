"""The collector of cycles, kept away from what stays.

Python's collector looks at every container that lives, now and then, and stops the event loop for
that: 0.15 s with a thousand VMs. Nearly all of them live as long as their VM does. So what came to
stay is taken out of its sight, and what scrapes leave behind is looked at often, while it is little.
"""

from __future__ import annotations

import gc

#: Containers made and not freed before the collector looks by itself: more than a fleet is. That
#: of a thousand VMs of 4 disks x 3 layers makes some 200,000 when it is first seen.
_YOUNG = 300_000
#: So many are looked at in some milliseconds; the first contact with a fleet leaves more.
_LITTLE = 20_000
#: What left may have left cycles behind among what is out of sight; they are worth a long look.
_GONE_LIMIT = 1000


class GcTuner:
    """Decides when the collector looks, and at what."""

    def __init__(self) -> None:
        """Change how this process collects, for good."""
        gc.set_threshold(_YOUNG, 10, 10)
        gc.collect()
        gc.freeze()
        self._gone = 0

    def settle(self, gone: int) -> None:
        """Collect after a sweep; `gone` targets have left since the last time."""
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
                # Seldom: a cycle that is alive just now, and garbage later, stays out of sight.
                if _old() >= _LITTLE // 8:
                    gc.freeze()


def _old() -> int:
    return len(gc.get_objects(generation=2))
