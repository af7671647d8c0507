"""Ending early on request: SIGTERM and SIGUSR1 end a run with a checkpoint of the step under way.

Launchers announce the end of their patience so: Slurm before a time limit, Kubernetes before it
takes a pod away, torchrun to its ranks when it is told to end. One rank that heard of it is enough:
all ranks learn in that step's sum of losses (``TrainingStep.run``) and save the same step.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

STOPPED = 75  # EX_TEMPFAIL in sysexits.h: not done, come again


class StopRequest:
    """Whether this process was asked to end; called, it says so."""

    def __init__(self) -> None:
        self._asked = False

    def __call__(self) -> bool:
        return self._asked

    def ask(self) -> None:
        """Ask from within this process, for a launcher that passes the request on by itself."""
        self._asked = True

    @contextmanager
    def listening(self, *, interrupts: bool = False) -> Iterator[None]:
        """Hear the signals inside; whoever heard them before hears them again afterwards.

        ``interrupts``: Ctrl-C asks as well; once asked, it raises ``KeyboardInterrupt`` as ever.
        Only a main thread hears signals. In another one, such as that of a Ray worker, nothing is
        changed: there the driver asks.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (*SIGNALS, signal.SIGINT) if interrupts else SIGNALS
        before = {number: signal.signal(number, self._hear) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._asked:
            raise KeyboardInterrupt
        self._asked = True


def exit_code(environment: Mapping[str, str]) -> int:
    """What a process that was stopped ends with.

    torchrun starts ranks again that end with anything but 0.
    """
    return 0 if "TORCHELASTIC_RUN_ID" in environment else STOPPED
