"""A rank that stops making progress ends itself, so that whoever supervises it can act.

Every collective has a timeout (``mesh.timeout_s``), so that a rank that waits for a hanging one
ends by itself. The one that hangs does not, where it is stuck in something else: a read from a file
system that is gone, a lock. Hence ``hang_s`` is best longer than that timeout: by then the ranks
that only waited have ended, and the one that is told of is the culprit.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import Field

from hecate.config import Config
from hecate.errors import HecateError

HUNG = 70  # EX_SOFTWARE in sysexits.h
LONGEST_PERIOD_S = 5.0


class WatchdogConfig(Config):
    """Seconds without progress after which a rank ends with exit code 70; 0: never.

    Progress is the beginning of a step or of a phase of one; of evaluations, of each batch's.
    ``first_step_s``: until the first step is done, which may compile, measure and fill caches.
    """

    hang_s: float = Field(default=600.0, ge=0)
    first_step_s: float = Field(default=1800.0, ge=0)


class Watchdog:
    """Watches this rank from a thread of its own; told of progress by ``step`` and ``phase``.

    ``clock`` gives seconds. ``end`` ends the process with a code, whatever its threads do.
    """

    # Note [Who watches the watchdog]
    # -------------------------------
    # A thread of Python does not run while another holds the interpreter, as one does that hangs
    # in an extension. So the thread, each time it looks, also winds up faulthandler's timer, a
    # thread of C: if nobody has wound it for ``hang_s`` it writes the stacks and ends the process
    # with exit code 1.

    def __init__(
        self,
        config: WatchdogConfig,
        rank: int,
        folder: Path,
        *,
        clock: Callable[[], float],
        end: Callable[[int], object] = os._exit,
    ) -> None:
        self._config, self._rank, self._clock, self._end = config, rank, clock, end
        self._stacks = folder / f"hang-rank-{rank}.txt"
        self._doing = "before the first step"
        self._steps = 0
        self._since_s = clock()

    def step(self, step: int) -> None:
        """Step number ``step`` (the first is 0) begins."""
        self._doing, self._since_s = f"step {step + 1}", self._clock()
        self._steps += 1

    def phase(self, name: str) -> None:
        """A phase begins; called many times a step."""
        self._since_s = self._clock()
        self._doing = f"{self._doing.partition(',')[0]}, {name}"

    def overdue(self) -> HecateError | None:
        """What to say if there was no progress for too long."""
        past_first = self._steps > 1
        name = "hang_s" if past_first else "first_step_s"
        allowed_s = self._config.hang_s if past_first else self._config.first_step_s
        waited_s = self._clock() - self._since_s
        if not allowed_s or waited_s < allowed_s:
            return None
        return HecateError(
            f"rank {self._rank} has made no progress for {waited_s:.0f} s",
            got=f"it hangs in {self._doing}; the stacks of its threads are in {self._stacks}",
            expected=f"progress within watchdog.{name} = {allowed_s:g} s",
            fix="look at the stacks; where it was only slow, raise that; the run goes on from its "
            "newest checkpoint with --resume auto",
        )

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch inside."""
        if not self._config.hang_s and not self._config.first_step_s:
            yield
            return
        over = threading.Event()
        self._since_s = self._clock()
        self._stacks.unlink(missing_ok=True)  # of a start before
        thread = threading.Thread(target=self._watch, args=(over,), name="watchdog", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _watch(self, over: threading.Event) -> None:
        limits = [s for s in (self._config.hang_s, self._config.first_step_s) if s]
        period_s = min(LONGEST_PERIOD_S, min(limits) / 4)
        try:
            while not over.wait(period_s):
                # See Note [Who watches the watchdog].
                faulthandler.dump_traceback_later(max(limits) + period_s, exit=True)
                error = self.overdue()
                if error is not None:
                    self._tell(error)
                    self._end(HUNG)
                    return
        finally:
            faulthandler.cancel_dump_traceback_later()

    def _tell(self, error: HecateError) -> None:
        try:
            with self._stacks.open("w", encoding="utf-8") as file:
                file.write(f"{error}\n\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
        except OSError:  # the file system may be what hangs or is full: the message is what counts
            pass
        print(f"error: {error}", file=sys.stderr, flush=True)
