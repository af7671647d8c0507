"""A sparse gather of one chunk in eight beside an eighth of the fastest dense gather.

The dense gather brings every chunk to every rank: by torch's own all-gather and broadcast, and by
each of our transports. All candidates run in turn, so that a machine that slows down slows all.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist

from collectives.placement import Placement
from collectives.schedule import Change, gather_schedule
from collectives.sparse import sparse_all_gather
from collectives.topology import Link, Topology
from collectives.transports import TRANSPORTS, LaunchResources, Rows
from hecate.mesh import ParallelContext

NUM_CHUNKS = 16
FRACTION = 8  # one chunk in so many travels
DENSE, SPARSE, LAUNCH = "dense", "sparse", "launch"


@dataclass(frozen=True)
class SparseGather:
    """Times ``repeats`` gathers of each kind with chunks of ``chunk_bytes``."""

    chunk_bytes: int
    repeats: int

    def __call__(self, ctx: ParallelContext) -> dict[str, dict[str, tuple[float, ...]]]:
        """Seconds on this rank by kind (``dense``, ``sparse``, ``launch``) and by way.

        ``launch``: the sparse gather with chunks of four bytes.
        """
        numel = self.chunk_bytes // 4
        owners = Placement.even(NUM_CHUNKS, ctx.world_size)
        everywhere = Placement((tuple(range(ctx.world_size)),) * NUM_CHUNKS, ctx.world_size)
        few = one_in_eight(owners)
        ways: dict[tuple[str, str], Callable[[], None]] = {}
        for name in TRANSPORTS:
            ways[DENSE, name] = _gather(name, owners, everywhere, numel, ctx)
            ways[SPARSE, name] = _gather(name, owners, few, numel, ctx)
            ways[LAUNCH, name] = _gather(name, owners, few, 1, ctx)
        ways[DENSE, "torch all_gather_into_tensor"] = _torch_all_gather(owners, numel, ctx)
        ways[DENSE, "torch broadcast"] = _torch_broadcast(owners, numel, ctx)
        taken: dict[str, dict[str, tuple[float, ...]]] = {DENSE: {}, SPARSE: {}, LAUNCH: {}}
        for repeat in range(1 + self.repeats):
            for (kind, way), gather in ways.items():
                dist.barrier(group=ctx.groups.control)
                started = time.perf_counter()
                gather()
                seconds = time.perf_counter() - started
                if repeat:  # the first one makes room
                    taken[kind][way] = (*taken[kind].get(way, ()), seconds)
        return taken


def one_in_eight(owners: Placement) -> Placement:
    """Everyone gets one chunk in eight; as many of them from each rank as from the others."""
    everyone = tuple(range(owners.world_size))
    travelling = {
        chunk
        for rank in everyone
        for chunk in owners.chunks_on(rank)[: owners.num_chunks // FRACTION // owners.world_size]
    }
    holders = [everyone if c in travelling else own for c, own in enumerate(owners.holders)]
    return Placement(tuple(holders), owners.world_size)


def _gather(
    name: str, owners: Placement, after: Placement, numel: int, ctx: ParallelContext
) -> Callable[[], None]:
    changes = [Change(owners, after, 4 * numel)]
    topology = Topology.single_node(ctx.world_size, Link(1.0, 0.0))
    transport = TRANSPORTS[name](LaunchResources())
    schedule = gather_schedule(changes, topology, hierarchical=transport.hierarchical)
    rows: list[Rows] = [{chunk: torch.ones(numel) for chunk in after.chunks_on(ctx.rank)}]

    def once() -> None:
        sparse_all_gather(
            rows,
            changes,
            schedule=schedule,
            transport=transport,
            group=ctx.groups.gather,
            rank=ctx.rank,
        ).wait()

    return once


def _torch_all_gather(owners: Placement, numel: int, ctx: ParallelContext) -> Callable[[], None]:
    own = torch.ones(len(owners.chunks_on(ctx.rank)) * numel)
    everything = torch.empty(NUM_CHUNKS * numel)
    return partial(dist.all_gather_into_tensor, everything, own, group=ctx.groups.gather)


def _torch_broadcast(owners: Placement, numel: int, ctx: ParallelContext) -> Callable[[], None]:
    chunks = [torch.ones(numel) for _ in range(NUM_CHUNKS)]

    def once() -> None:
        works = [
            dist.broadcast(chunk, group_src=owner, group=ctx.groups.gather, async_op=True)
            for chunk, owner in zip(chunks, owners.owners, strict=True)
        ]
        for work in works:
            work.wait()

    return once
