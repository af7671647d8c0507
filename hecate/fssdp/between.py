"""How long a model computes before a layer of experts: what may hide their transfers."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from hecate.fssdp.blocks import on_start


def seconds_between(
    modules: Sequence[nn.Module],
    forward: Callable[[], object],
    device: torch.device,
    *,
    blocks: Sequence[nn.Module] = (),
) -> float:
    """The median over layers of the time in which a layer's gather has only computation beside it.

    That is from where the first of ``blocks`` begins after one experts module to the start of the
    next one; without blocks from the former's end. ``modules`` in the order in which ``forward``
    runs them; it runs twice, once to warm up. 0 for a single layer. Attention, norms and the
    router are in it, and without blocks shared experts where they follow.
    """
    if len(modules) < 2:
        return 0.0
    forward()
    with _marks(modules, blocks, device) as marks:
        forward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return statistics.median(_seconds(a, b) for a, b in _spans(marks))


@contextmanager
def _marks(
    modules: Sequence[nn.Module], blocks: Sequence[nn.Module], device: torch.device
) -> Iterator[list[tuple[str, Any]]]:
    """What began (``block``, ``start``) or ended (``end``), and when, in the order of events."""
    marks: list[tuple[str, Any]] = []

    def mark(name: str) -> None:
        if device.type != "cuda":
            marks.append((name, time.perf_counter()))
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        marks.append((name, event))

    hooks = on_start(blocks, lambda: mark("block"))
    hooks += [module.register_forward_pre_hook(lambda *_: mark("start")) for module in modules]
    hooks += [module.register_forward_hook(lambda *_: mark("end")) for module in modules]
    try:
        yield marks
    finally:
        for hook in hooks:
            hook.remove()


def _spans(marks: Sequence[tuple[str, Any]]) -> Iterator[tuple[Any, Any]]:
    """From the first block after an end, or from the end itself, to the start after it."""
    ended = begun = None
    for name, at in marks:
        if name == "end":
            ended, begun = at, None
        elif name == "block" and begun is None:
            begun = at
        elif name == "start" and ended is not None:
            yield ended if begun is None else begun, at


def _seconds(start: Any, end: Any) -> float:
    if isinstance(start, float):
        return float(end - start)
    return float(start.elapsed_time(end)) / 1e3
