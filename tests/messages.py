"""What a test asks of a message of ours: the setting and the value, not the sentence."""

from __future__ import annotations

import re


def tells(message: str, expected: str) -> bool:
    """Whether a message of one line is `expected`, in which `...` stands for any words.

    >>> tells("a.yml: depth must be 0 or more, got -1", "a.yml: depth ... -1")
    True
    >>> tells("a.yml: width must be 0 or more, got -1", "a.yml: depth ... -1")
    False
    """
    return re.fullmatch(".*".join(map(re.escape, expected.split("..."))), message) is not None
