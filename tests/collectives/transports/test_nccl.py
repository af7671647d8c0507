"""Every transport on NCCL: values, low precision, several rounds, no wait of the host."""

from __future__ import annotations

import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from launches import ACROSS, INSIDE, everywhere

from collectives import (
    TRANSPORTS,
    Change,
    Placement,
    Topology,
    agree,
    gather_schedule,
    reduce_schedule,
    sparse_all_gather,
    sparse_reduce_scatter,
)
from hecate.mesh import MeshConfig, Rendezvous, open_mesh

NUMEL = 1 << 18


def nccl_rank(rank: int, world_size: int, store: str, name: str) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank))
    rendezvous = Rendezvous(rank, world_size, rank, dist.FileStore(store, world_size))
    with open_mesh(MeshConfig(device="cuda", timeout_s=60), rendezvous) as ctx:
        group = ctx.groups.tokens
        agree(1, [], group, rank, world_size, device=ctx.device)  # forms the communicator
        before = Placement.from_owners(range(world_size), world_size)
        nodes = tuple(r // 2 for r in range(world_size)) if world_size > 2 else (0, 0)
        topology = Topology(nodes, INSIDE, ACROSS)
        transport = TRANSPORTS[name]()
        for dtype in (torch.float32, torch.bfloat16):
            layers = [Change(before, everywhere(before), NUMEL * dtype.itemsize)]
            two_level = transport.hierarchical
            rows = [
                {
                    chunk: torch.full(
                        (NUMEL,), 1.0 + chunk if chunk == rank else 0.0, dtype=dtype, device="cuda"
                    )
                    for chunk in range(world_size)
                }
            ]
            torch.cuda.set_sync_debug_mode("error")
            gathering = sparse_all_gather(
                rows,
                layers,
                schedule=gather_schedule(layers, topology, hierarchical=two_level),
                transport=transport,
                group=group,
                rank=rank,
            )
            gathering.wait()
            copies = [row.clone() for row in rows[0].values()]
            reducing = sparse_reduce_scatter(
                rows,
                layers,
                schedule=reduce_schedule(layers, topology, hierarchical=two_level),
                transport=transport,
                group=group,
                rank=rank,
            )
            reducing.wait()
            torch.cuda.set_sync_debug_mode("default")
            for chunk, copy in enumerate(copies):
                assert bool((copy == 1.0 + chunk).all())
            assert bool((rows[0][rank] == world_size * (1.0 + rank)).all())
            assert gathering.done() and reducing.done()


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NCCL gives each rank a GPU of its own")
@pytest.mark.parametrize("name", sorted(TRANSPORTS))
def test_gathers_and_reductions_on_nccl(name, tmp_path):
    world_size = min(4, torch.cuda.device_count())
    mp.spawn(nccl_rank, (world_size, str(tmp_path / "store"), name), nprocs=world_size)
