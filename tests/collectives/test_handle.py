"""A rank that dies in mid-collective: the others end with an error, within the group's timeout."""

from __future__ import annotations

import datetime
import os
import signal
import time
from multiprocessing.connection import Connection, wait
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from launches import ACROSS, INSIDE, everywhere
from ranks import FORKSERVER

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
from hecate.mesh import MeshConfig, Rendezvous, open_mesh

WORLD = 4
TIMEOUT_S = 3.0
VICTIM = 2
NUMEL = 1 << 20


def rank_main(end: Connection, rank: int, store: str, name: str, kind: str) -> None:
    """Large rows everywhere; the victim launches and kills itself before it waits."""
    torch.set_num_threads(1)
    rendezvous = Rendezvous(rank, WORLD, rank, dist.FileStore(store, WORLD))
    with open_mesh(MeshConfig(device="cpu", timeout_s=60), rendezvous) as ctx:
        before = Placement.from_owners(range(WORLD), WORLD)
        layers = [Change(before, everywhere(before), 4 * NUMEL)]
        topology = Topology((0, 0, 1, 1), INSIDE, ACROSS)
        transport = TRANSPORTS[name]()
        schedule = (gather_schedule if kind == "gather" else reduce_schedule)(
            layers, topology, hierarchical=transport.hierarchical
        )
        collective = sparse_all_gather if kind == "gather" else sparse_reduce_scatter
        group = dist.new_group(backend="gloo", timeout=datetime.timedelta(seconds=TIMEOUT_S))
        dist.barrier(group=ctx.groups.control)
        try:
            handle = None
            for _ in range(20):  # many, so that some are certainly under way when the rank dies
                rows = [{chunk: torch.ones(NUMEL) for chunk in range(WORLD)}]
                if rank == VICTIM and handle is not None:
                    os.kill(os.getpid(), signal.SIGKILL)
                handle = collective(
                    rows,
                    layers,
                    schedule=schedule,
                    transport=transport,
                    group=group,
                    rank=rank,
                )
                if rank != VICTIM:
                    handle.wait()
            end.send("nothing went wrong")
        except CollectiveError as error:
            end.send(f"{type(error).__name__}: {error}")
        finally:
            os._exit(0)  # the groups cannot be closed in good order any more


@pytest.mark.parametrize("kind", ["gather", "reduce"])
@pytest.mark.parametrize("name", sorted(TRANSPORTS))
def test_a_killed_rank_ends_the_others_with_an_error(name, kind, tmp_path: Path):
    processes, ends = [], {}
    for rank in range(WORLD):
        ours, theirs = FORKSERVER.Pipe(duplex=False)
        process = FORKSERVER.Process(
            target=rank_main, args=(theirs, rank, str(tmp_path / "store"), name, kind), daemon=True
        )
        process.start()
        theirs.close()
        processes.append(process)
        ends[ours] = rank
    heard = {}
    deadline_s = time.monotonic() + TIMEOUT_S + 20.0
    try:
        while ends and (ready := wait(list(ends), timeout=deadline_s - time.monotonic())):
            for end in ready:
                rank = ends.pop(end)
                try:
                    heard[rank] = end.recv()
                except EOFError:
                    heard[rank] = "died"
    finally:
        for process in processes:
            process.kill()
            process.join()
    assert heard.pop(VICTIM) == "died"
    what = "sparse all-gather" if kind == "gather" else "sparse reduce-scatter"
    assert sorted(heard) == [0, 1, 3]
    for rank, text in heard.items():
        assert text.startswith(("PeerLost: ", "CollectiveTimeout: "))
        assert f"rank {rank}: the {what}" in text
