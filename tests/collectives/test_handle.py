"""A rank that dies in mid-collective: the others end with an error, within the group's timeout.

And, on a GPU, what drives a collective of several rounds.
"""

from __future__ import annotations

import datetime
import os
import signal

import pytest
import torch
import torch.distributed as dist
from gpus import gpus, no_host_wait
from launches import ACROSS, INSIDE, everywhere
from ranks import run_mortals

from collectives import (
    TRANSPORTS,
    Change,
    CollectiveError,
    Handle,
    LaunchResources,
    Placement,
    Topology,
    gather_schedule,
    reduce_schedule,
    sparse_all_gather,
    sparse_reduce_scatter,
)
from collectives.transports import Launch, Steps
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
    heard = run_mortals(dying_on_rank, WORLD, name, kind, within_s=TIMEOUT_S + 20)
    what = "sparse all-gather" if kind == "gather" else "sparse reduce-scatter"
    assert sorted(heard) == [0, 1, 3]
    for rank, text in heard.items():
        assert text.startswith(("PeerLost: ", "CollectiveTimeout: "))
        assert f"rank {rank}: the {what} of layer blocks.7.experts with ranks " in text


class Counting:
    """Adds one to the only row in each round, after half a second; sends nothing."""

    name = "counting"
    hierarchical = True
    takes_everyone = True

    def __init__(self, resources: LaunchResources | None = None) -> None:
        self.resources = resources or LaunchResources()

    def gather(self, launch: Launch) -> Steps:
        for _ in launch.schedule.rounds:
            torch.cuda._sleep(1_000_000_000)
            launch.rows[0][0].add_(1)
            yield ()

    reduce = gather


@pytest.mark.parametrize("rounds", [pytest.param(2, marks=gpus(1))])
def test_on_a_gpu_several_rounds_have_a_stream_of_their_own_and_nobody_waits(rounds):
    before = Placement.from_owners([0], 3)
    layers = [Change(before, everywhere(before), 4 * NUMEL)]
    topology = Topology((0, 1, 1), INSIDE, ACROSS)
    schedule = gather_schedule(layers, topology, hierarchical=True)
    assert len(schedule.rounds) == rounds
    row = torch.zeros(NUMEL, device="cuda")
    transport = Counting()
    launch = Launch([{0: row}], layers, schedule, None, 0)
    with no_host_wait():
        row.fill_(5)  # queued on the stream that computes: the rounds come after it
        handle = Handle("count", launch, transport, transport.gather(launch))
        computed = torch.cuda.Event()
        computed.record()
    computed.synchronize()  # what computes is not held up by the rounds
    assert not handle.done()
    handle.wait()  # queued too: the clone comes after the rounds
    seen = row.clone()
    assert bool((seen == 5 + rounds).all())
    assert handle.done()
