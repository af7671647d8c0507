"""What a row and a copy cost on this machine: the planner's units, measured once and remembered.

Plans must not differ between repeats of a run, so that what was measured is kept in a file, by
everything that it depends on.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from collectives.placement import Placement
from collectives.schedule import Change, Schedule, gather_schedule, reduce_schedule
from collectives.sparse import Handle, sparse_all_gather, sparse_reduce_scatter
from collectives.topology import Link, Topology
from collectives.transports import TRANSPORTS, LaunchResources
from hecate.fssdp.config import CostsConfig
from hecate.fssdp.experts import ExpertMath, kernel_for
from hecate.fssdp.replicas import ReplicaSlots
from hecate.mesh import ParallelContext
from hecate.models.families import MoELayer
from hecate.planner.copies import StepCosts

ROWS = 256
REPEATS = 5


def step_costs(
    config: CostsConfig,
    module: nn.Module,
    layer: MoELayer,
    ctx: ParallelContext,
    *,
    dtype: torch.dtype,
    compute_dtype: torch.dtype,
    folder: Path,
) -> StepCosts:
    """The costs of ``layer``, whose experts are ``module``'s: as configured, else measured.

    Collective over all ranks; every rank gets the same numbers. Measurements are kept in
    ``folder``, and only rank 0 reads and writes there.
    """
    numbers = torch.tensor([config.slot_s, config.copy_s], dtype=torch.float64)
    if not numbers.all() and ctx.world_size > 1:
        file = folder / f"{_digest(layer, ctx, compute_dtype)}.json"
        known = torch.zeros(2, dtype=torch.float64)
        if ctx.rank == 0:
            known = _remembered(file)
        dist.broadcast(known, group_src=0, group=ctx.groups.control)
        if not known.all():
            math = ExpertMath.of(module, layer.name)
            mine = [
                _slot_s(layer, math, ctx.device, compute_dtype),
                _copy_s(layer, ctx, dtype, compute_dtype),
            ]
            known = torch.tensor(mine, dtype=torch.float64)
            dist.all_reduce(known, op=dist.ReduceOp.MAX, group=ctx.groups.control)
            if ctx.rank == 0:
                folder.mkdir(parents=True, exist_ok=True)
                unfinished = file.with_suffix(f".{uuid.uuid4().hex}")  # another run may write too
                unfinished.write_text(json.dumps(known.tolist()))
                unfinished.replace(file)
        numbers = torch.where(numbers > 0, numbers, known)
    slot_s, copy_s = numbers.tolist()
    return StepCosts(
        slot_s=slot_s,
        copy_s=copy_s,
        free_copies=config.free_copies,
        slots_per_rank=config.slots_per_rank,
    )


def _remembered(file: Path) -> torch.Tensor:
    """What an earlier run measured; zeros where there is nothing, or nothing that can be read."""
    try:
        slot_s, copy_s = json.loads(file.read_text(encoding="utf-8"))
        return torch.tensor([float(slot_s), float(copy_s)], dtype=torch.float64)
    except (OSError, ValueError, TypeError):
        return torch.zeros(2, dtype=torch.float64)


def _digest(layer: MoELayer, ctx: ParallelContext, compute_dtype: torch.dtype) -> str:
    subject = (
        platform.node(),
        platform.processor(),
        torch.__version__,
        torch.get_num_threads(),
        str(ctx.device.type),
        ctx.node_of_rank,
        layer.layout.numel,
        str(compute_dtype),
    )
    return hashlib.sha256(repr(subject).encode()).hexdigest()[:16]


def _slot_s(
    layer: MoELayer, math: ExpertMath, device: torch.device, compute_dtype: torch.dtype
) -> float:
    """One row through one expert, forward and backward, with weights of zero."""
    buffers = (
        torch.zeros(1, layer.layout.numel, device=device, dtype=compute_dtype) for _ in range(2)
    )
    held = [ReplicaSlots(layer, (0,), *buffers)]
    kernel = kernel_for(device, compute_dtype, layer.layout)
    shape = next(t.shape for t in layer.layout.tensors if t.name == math.down)
    width = shape[1] if math.transposed else shape[0]
    x_RD = torch.zeros(ROWS, width, device=device, dtype=compute_dtype)
    weights_R = torch.ones(ROWS, device=device, dtype=compute_dtype)

    def once() -> None:
        with torch.no_grad():
            y_RD, saved = kernel.forward(x_RD, weights_R, [ROWS], held, math)
            kernel.backward(y_RD, x_RD, weights_R, saved, [ROWS], held, math)

    return _fastest_s(once, device) / ROWS


def _copy_s(
    layer: MoELayer, ctx: ParallelContext, dtype: torch.dtype, compute_dtype: torch.dtype
) -> float:
    """One expert from rank 0 to rank 1 and its gradient back, while nothing else happens."""
    world_size, numel = ctx.world_size, layer.layout.numel
    owners = Placement.from_owners([0], world_size)
    copied = Placement(((0, 1),), world_size)
    topology = Topology.single_node(world_size, Link(1.0, 0.0))
    transport = TRANSPORTS["p2p"](LaunchResources())

    def launch(
        collective: Callable[..., Handle], schedule_of: Callable[..., Schedule], kind: torch.dtype
    ) -> Callable[[], Handle]:
        changes = [Change(owners, copied, numel * kind.itemsize)]
        row = {0: torch.zeros(numel, device=ctx.device, dtype=kind)} if ctx.rank < 2 else {}
        return partial(
            collective,
            [row],
            changes,
            schedule=schedule_of(changes, topology, hierarchical=False),
            transport=transport,
            group=ctx.groups.gather,
            rank=ctx.rank,
        )

    gather = launch(sparse_all_gather, gather_schedule, compute_dtype)
    reduction = launch(sparse_reduce_scatter, reduce_schedule, dtype)

    def once() -> None:
        gather().wait()
        reduction().wait()

    # NCCL forms a group's communicator in its first collective, in which all ranks take part
    dist.all_reduce(torch.zeros(1, device=ctx.device), group=ctx.groups.gather)
    return _fastest_s(once, ctx.device)


def _fastest_s(once: Callable[[], None], device: torch.device) -> float:
    taken = []
    for _ in range(1 + REPEATS):
        started = time.perf_counter()
        once()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - started)
    return min(taken[1:])
