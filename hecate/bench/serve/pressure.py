"""Answers that outgrow the memory together: what gives way is computed again, or copied back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from hecate.bench.serve.offline import Cell, Say, rates
from hecate.bench.serve.sides import NATIVE, Setting, online

ROOMY, RECOMPUTE, SWAP = "roomy", "recompute", "swap"


@dataclass(frozen=True)
class Pressure:
    """``rates``: tokens a second by round and engine; ``loads``: how busy each had been, counts of
    all rounds together. ``share``: of what all answers need at their end, the memory there is."""

    model: str
    cell: Cell
    share: float
    rates: Mapping[str, Sequence[float]]
    loads: Mapping[str, Mapping[str, float]]


def under_pressure(
    title: str,
    cell: Cell,
    setting: Setting,
    *,
    share: float,
    kv_bytes: float,
    rounds: int,
    vocabulary: int,
    folder: Path,
    say: Say,
) -> Pressure:
    """Our engine with room for all, with room for a ``share``, and with room for the rest in the
    host's memory, in turns. ``kv_bytes``: of one token."""
    needed = cell.batch * (cell.prompt_tokens + cell.output_tokens) * kv_bytes / 2**30
    small = replace(setting, kv_gib=share * needed)
    settings = {
        ROOMY: replace(setting, kv_gib=1.5 * needed),  # blocks are not full, some stay free
        RECOMPUTE: small,
        SWAP: replace(small, swap_gib=needed),
    }
    with ExitStack() as stack:
        contenders = {}
        for name, each in settings.items():
            (folder / name).mkdir(exist_ok=True)
            contenders[name] = stack.enter_context(online(NATIVE, each, folder / name))[0]
        found = rates([cell], contenders, rounds, vocabulary, say)[cell]
        loads = {
            name: contender.ask({"do": "load"}, timeout_s=60)
            for name, contender in contenders.items()
        }
    return Pressure(title, cell, share, found, loads)
