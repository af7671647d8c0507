"""Keep freed host memory in the process, so that a step does not fault it in again.

glibc hands every large block back to the kernel when it is freed, and the next step's activations
of the same size then cost a page fault and a zeroed page for each 4 KiB. Keeping them saves 5 to
10 % of a training step on CPU. The price: the process stays as large as its largest step, and
grows with each step in which blocks no longer fit where blocks were freed. ``FreedMemory`` gives
all of that back once it has become too much, and the next step takes what it needs anew.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Callable

# <malloc.h>
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_MAX = -4
_M_ARENA_MAX = -8

_NEVER = -1
_TOP_PAD_BYTES = 64 << 20

GROWTH = 1.05  # of the process since the first step after it gave memory back
SETTLING_STEPS = 2  # the second step is the first with optimizer state
FEWEST_STEPS = 10  # between two times: a step that faults its memory in is slower


def keep_freed_memory() -> bool:
    """Tell malloc to keep what is freed; whether it could be told (glibc on Linux only).

    Call it once, early: blocks that are mapped already are still returned.
    """
    if not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    mallopt.argtypes = [ctypes.c_int, ctypes.c_int]
    mallopt.restype = ctypes.c_int
    options = (
        (_M_ARENA_MAX, 1),  # other arenas are mapped, and would trim on their own
        (_M_MMAP_MAX, 0),
        (_M_TRIM_THRESHOLD, _NEVER),
        (_M_TOP_PAD, _TOP_PAD_BYTES),
    )
    return all(mallopt(option, value) == 1 for option, value in options)


class FreedMemory:
    """Gives kept memory back to the kernel when the process has grown beyond what a step needs.

    ``resident`` reads the process's size, ``give_back`` returns what is free: see
    ``give_back_freed``.
    """

    def __init__(self, resident: Callable[[], int], give_back: Callable[[], object]) -> None:
        self._resident, self._give_back = resident, give_back
        self._steps = 0
        self._settled_bytes = 0

    def after_step(self) -> None:
        """To be called after each training step."""
        self._steps += 1
        if self._steps < SETTLING_STEPS:
            return
        resident_bytes = self._resident()
        if self._steps == SETTLING_STEPS:
            self._settled_bytes = resident_bytes
        elif self._steps >= FEWEST_STEPS and resident_bytes > GROWTH * self._settled_bytes:
            self._give_back()
            self._steps = SETTLING_STEPS - 1  # the next step says what one needs


def give_back_freed() -> None:
    """Return every free page of the heap to the kernel; nothing where libc is not glibc."""
    if sys.platform.startswith("linux") and platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
