"""Transports whose collectives a trace shows from their launch to their end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch.profiler import record_function

from collectives.transports import Launch, Steps, Transport
from hecate.train.profile.trace import CARRY, LAUNCH


class WatchedTransport:
    """``transport``, whose launches are named, and on gloo waited for by a thread, while recorded.

    Gloo tells of the end of a message only to who waits for it. ``recording()``: whether a trace is
    being made; without one nothing is changed. ``kind``: what its collectives are called.
    """

    def __init__(self, transport: Transport, kind: str, recording: Callable[[], bool]) -> None:
        self._transport, self._kind, self._recording = transport, kind, recording
        self.name, self.hierarchical = transport.name, transport.hierarchical
        self.takes_everyone, self.resources = transport.takes_everyone, transport.resources

    def gather(self, launch: Launch) -> Steps:
        return self._watched(launch, self._transport.gather(launch))

    def reduce(self, launch: Launch) -> Steps:
        return self._watched(launch, self._transport.reduce(launch))

    def _watched(self, launch: Launch, steps: Steps) -> Steps:
        while self._recording():
            with record_function(f"{LAUNCH}{self._kind}"):
                works = next(steps, None)
            if works is None:
                return
            if works and launch.device.type == "cpu":
                names = ", ".join(change.name for change in launch.changes)
                yield [_Carried(f"{CARRY}{self._kind} of {names}", works, steps)]
                return
            yield works
        yield from steps


class _Carried(dist.Work):
    """The rest of a collective, in a thread that waits and goes on until its end."""

    def __init__(self, name: str, works: Sequence[dist.Work], steps: Steps) -> None:
        super().__init__()
        self._error: Exception | None = None
        self._thread = threading.Thread(
            target=self._carry, args=(name, works, steps), name=name, daemon=True
        )
        self._thread.start()

    def _carry(self, name: str, works: Sequence[dist.Work], steps: Steps) -> None:
        try:
            with torch.no_grad(), record_function(name):
                following: Sequence[dist.Work] | None = works
                while following is not None:
                    for work in following:
                        work.wait()
                    following = next(steps, None)
        except Exception as error:
            self._error = error

    def is_completed(self) -> bool:
        return not self._thread.is_alive()

    def wait(self, timeout: object = None) -> bool:
        self._thread.join()
        if self._error is not None:
            raise self._error
        return True
