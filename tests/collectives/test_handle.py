"""A rank that dies in mid-collective: the others end with an error, within the group's timeout."""

from __future__ import annotations

import datetime
import os
import signal

import pytest
import torch
import torch.distributed as dist
from launches import ACROSS, INSIDE, everywhere
from ranks import run_mortals

from collectives import (
    TRANSPORTS,
    Change,
    CollectiveError,
    Placement,
    Topology,
    gather_schedule,
    reduce_schedule,
    sparse_all_gather,
    sparse_reduce_scatter,
)
from hecate.mesh import ParallelContext

WORLD = 4
TIMEOUT_S = 3.0
VICTIM = 2
NUMEL = 1 << 20


def dying_on_rank(ctx: ParallelContext, name: str, kind: str) -> str:
    """Large rows everywhere; the victim launches and kills itself before it waits."""
    before = Placement.from_owners(range(WORLD), WORLD)
    layers = [Change(before, everywhere(before), 4 * NUMEL, name="blocks.7.experts")]
    topology = Topology((0, 0, 1, 1), INSIDE, ACROSS)
    transport = TRANSPORTS[name]()
    schedule = (gather_schedule if kind == "gather" else reduce_schedule)(
        layers, topology, hierarchical=transport.hierarchical
    )
    collective = sparse_all_gather if kind == "gather" else sparse_reduce_scatter
    group = dist.new_group(backend="gloo", timeout=datetime.timedelta(seconds=TIMEOUT_S))
    dist.barrier(group=ctx.groups.control)
    handle = None
    try:
        for _ in range(20):  # many, so that some are certainly under way when the rank dies
            rows = [{chunk: torch.ones(NUMEL) for chunk in range(WORLD)}]
            if ctx.rank == VICTIM and handle is not None:
                os.kill(os.getpid(), signal.SIGKILL)
            handle = collective(
                rows, layers, schedule=schedule, transport=transport, group=group, rank=ctx.rank
            )
            if ctx.rank != VICTIM:
                handle.wait()
    except CollectiveError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing went wrong"


@pytest.mark.parametrize("kind", ["gather", "reduce"])
@pytest.mark.parametrize("name", sorted(TRANSPORTS))
def test_a_killed_rank_ends_the_others_with_an_error(name, kind):
    heard = run_mortals(dying_on_rank, WORLD, name, kind, timeout_s=TIMEOUT_S + 20)
    what = "sparse all-gather" if kind == "gather" else "sparse reduce-scatter"
    assert sorted(heard) == [0, 1, 3]
    for rank, text in heard.items():
        assert text.startswith(("PeerLost: ", "CollectiveTimeout: "))
        assert f"rank {rank}: the {what} of layer blocks.7.experts with ranks " in text
