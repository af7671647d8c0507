"""How long tests wait for other processes, which on a busy machine take their time.

It bounds only what has gone wrong: whatever was waited for is taken as soon as it is there. It is
below the five minutes after which the ranks of a mesh give one another up, so that a test that is
still waiting then has not been helped by that.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

PATIENCE_S = 240.0

Found = TypeVar("Found")


def until(true: Callable[[], Found], what: str, *, pause_s: float = 0.02) -> Found:
    """What ``true`` returns as soon as that is so. ``what`` is missed if it is not in time."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not (found := true()):
        assert time.monotonic() < deadline_s, f"{what} did not come in {PATIENCE_S:.0f} s"
        time.sleep(pause_s)
    return found
