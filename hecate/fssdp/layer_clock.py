"""Seconds of each layer by what they were spent on, taken without waiting for the device."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch

Mark = Any
"""A point in time: seconds of the host, or an event of the current CUDA stream."""


class Spent(Enum):
    """What a span of a layer's time went to.

    ``EXPERTS``: computing its experts, forward and backward. ``EXPOSED``: waiting for copies before
    the experts could go on. ``HIDDEN``: copies on their way while something else was computed.
    """

    EXPERTS = "experts_s"
    EXPOSED = "exposed_gather_s"
    HIDDEN = "hidden_gather_s"


@dataclass(frozen=True)
class _Span:
    spent: Spent
    layer: int
    start: Mark
    end: Mark
    at_most_s: float


class LayerClock:
    """Adds up spans of ``num_layers`` layers on ``device``, from one ``take`` to the next.

    On CUDA a span lies between two events of the stream that computes, and counts once the device
    has passed both: ``settle`` looks for such, and nothing here waits.
    """

    def __init__(self, num_layers: int, device: torch.device) -> None:
        self._num_layers, self._on_cuda = num_layers, device.type == "cuda"
        self._open: list[_Span] = []
        self._seconds = self._zeros()

    def mark(self) -> Mark:
        """Now, on whatever computes."""
        if not self._on_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def add(
        self, spent: Spent, layer: int, start: Mark, end: Mark, *, at_most_s: float = math.inf
    ) -> None:
        """Charge the time between two marks, but no more than ``at_most_s``."""
        if self._on_cuda:
            self._open.append(_Span(spent, layer, start, end, at_most_s))
        else:
            self._seconds[spent][layer] += min(end - start, at_most_s)

    @contextmanager
    def span(self, spent: Spent, layer: int) -> Iterator[None]:
        """Charge the time inside."""
        start = self.mark()
        try:
            yield
        finally:
            self.add(spent, layer, start, self.mark())

    def settle(self) -> None:
        """Count what the device has passed by now; the rest stays for the next time."""
        waiting = []
        for span in self._open:
            if span.end.query():
                seconds = span.start.elapsed_time(span.end) / 1e3
                self._seconds[span.spent][span.layer] += min(seconds, span.at_most_s)
            else:
                waiting.append(span)
        self._open = waiting

    def take(self) -> dict[Spent, list[float]]:
        """The seconds of each layer, ``[Y]``, since the last ``take``."""
        self.settle()
        taken, self._seconds = self._seconds, self._zeros()
        return taken

    def _zeros(self) -> dict[Spent, list[float]]:
        return {spent: [0.0] * self._num_layers for spent in Spent}
