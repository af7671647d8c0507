"""Measurements that a machine keeps: a run repeats itself, and the next one starts at once."""

from __future__ import annotations

import hashlib
import json
import platform
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from hecate.mesh import ParallelContext


def remembered(
    file: Path,
    names: Sequence[str],
    measure: Callable[[], Sequence[float]],
    of_ranks: dist.ReduceOp.RedOpType,
    ctx: ParallelContext,
) -> list[float]:
    """The numbers called ``names``: from ``file``, or from ``measure``, which then fills it.

    Collective over all ranks, which all get the same: only rank 0 reads and writes, and what ranks
    measure is reduced by ``of_ranks``. A file that cannot be read is measured again.
    """
    found = torch.full((len(names),), torch.nan, dtype=torch.float64)
    if ctx.rank == 0:
        found = _read(file, names)
    dist.broadcast(found, group_src=0, group=ctx.groups.control)
    if found.isnan().any():
        found = torch.tensor(measure(), dtype=torch.float64)
        dist.all_reduce(found, op=of_ranks, group=ctx.groups.control)
        if ctx.rank == 0:
            file.parent.mkdir(parents=True, exist_ok=True)
            unfinished = file.with_suffix(f".{uuid.uuid4().hex}")  # another run may write too
            text = json.dumps(dict(zip(names, found.tolist(), strict=True)), indent=1)
            unfinished.write_text(text, encoding="utf-8")
            unfinished.replace(file)
    return [float(number) for number in found.tolist()]


def _read(file: Path, names: Sequence[str]) -> torch.Tensor:
    """The numbers of a file; not-a-numbers where it is missing or says something else."""
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        return torch.tensor([float(kept[name]) for name in names], dtype=torch.float64)
    except (OSError, ValueError, TypeError, KeyError):
        return torch.full((len(names),), torch.nan, dtype=torch.float64)


def machine_digest(ctx: ParallelContext, *subject: object) -> str:
    """Sixteen characters that stand for this machine, these ranks and ``subject``."""
    everything = (
        platform.node(),
        platform.processor(),
        torch.__version__,
        torch.get_num_threads(),
        ctx.device.type,
        ctx.node_of_rank,
        *map(str, subject),
    )
    return hashlib.sha256(repr(everything).encode()).hexdigest()[:16]
