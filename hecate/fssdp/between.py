"""How long a model computes between two layers of experts: what may hide their transfers."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def seconds_between(
    modules: Sequence[nn.Module], forward: Callable[[], object], device: torch.device
) -> float:
    """The median over layers of the time from one experts module's end to the next one's start.

    ``modules`` in the order in which ``forward`` runs them; it runs twice, once to warm up. 0 for a
    single layer. Attention, norms and the router are in it, and shared experts where they follow.
    """
    if len(modules) < 2:
        return 0.0
    forward()
    with _marks(modules, device) as marks:
        forward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    ends, starts = marks["end"][:-1], marks["start"][1:]
    return statistics.median(_seconds(a, b) for a, b in zip(ends, starts, strict=True))


@contextmanager
def _marks(modules: Sequence[nn.Module], device: torch.device) -> Iterator[dict[str, list[Any]]]:
    marks: dict[str, list[Any]] = {"start": [], "end": []}

    def mark(name: str) -> None:
        if device.type != "cuda":
            marks[name].append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        marks[name].append(event)

    hooks = [module.register_forward_pre_hook(lambda *_: mark("start")) for module in modules]
    hooks += [module.register_forward_hook(lambda *_: mark("end")) for module in modules]
    try:
        yield marks
    finally:
        for hook in hooks:
            hook.remove()


def _seconds(start: Any, end: Any) -> float:
    if isinstance(start, float):
        return float(end - start)
    return float(start.elapsed_time(end)) / 1e3
