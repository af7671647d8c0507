"""What the ranks of the network benchmark do, each in the namespace of its node.

Everything that is compared runs in the same processes in turn, so that each pass of one has the
same pass of the others beside it.
"""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist

from collectives.schedule import Change, gather_schedule, reduce_schedule
from collectives.sparse import sparse_all_gather, sparse_reduce_scatter
from collectives.topology import Link, Topology
from collectives.transports import TRANSPORTS, LaunchResources, Transport
from hecate.bench.contest import turn_order
from hecate.bench.copies import (
    GATHERED,
    SKIPPED,
    Alone,
    FixedCopies,
    GathersOnRequest,
    gathers_alone,
)
from hecate.bench.namespaces import INTERFACE, Node, enter, sent_bytes
from hecate.bench.replay import Replay
from hecate.bench.turns import Failed
from hecate.bench.worker import bind, do_tasks, write_to
from hecate.bench.workloads import Workload
from hecate.data import MicroBatch
from hecate.mesh import MeshConfig, ParallelContext, Rendezvous, open_mesh
from hecate.planner.load import Counts
from hecate.planner.policies import Policy
from hecate.train.build import Trainer, build_trainer
from hecate.train.config import RunConfig
from hecate.train.host_memory import keep_freed_memory

PORT = 29500  # nobody else is in these namespaces
SEED = 1
AWARE, BLIND = "aware", "blind"


@dataclass(frozen=True)
class NodeRank:
    """Where a rank runs: on all ``cores`` where none is given. ``store_address``: rank 0's, at
    which all meet."""

    rank: int
    world_size: int
    ranks_per_node: int
    node: Node
    cores: tuple[int, ...]
    store_address: str
    log: Path
    timeout_s: float


def run_on_node(connection: Connection, place: NodeRank) -> None:
    """The main function of a rank's process: tasks until ``connection`` closes."""
    write_to(place.log)
    bind(place.cores)
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    keep_freed_memory()
    try:
        enter(place.node)
        os.environ.update(
            RANK=str(place.rank),
            LOCAL_RANK=str(place.rank % place.ranks_per_node),
            WORLD_SIZE=str(place.world_size),
            GLOO_SOCKET_IFNAME=INTERFACE,
        )
        store = dist.TCPStore(  # type: ignore[attr-defined]
            place.store_address,
            PORT,
            place.world_size,
            is_master=place.rank == 0,
            timeout=datetime.timedelta(seconds=place.timeout_s),
        )
        local_rank = place.rank % place.ranks_per_node
        rendezvous = Rendezvous(place.rank, place.world_size, local_rank, store)
        mesh = MeshConfig(
            device="cpu", timeout_s=place.timeout_s, ranks_per_node=place.ranks_per_node
        )
        with open_mesh(mesh, rendezvous) as ctx:
            do_tasks(ctx, connection)
    except Exception as error:
        connection.send(Failed((str(error).strip().splitlines() or [type(error).__name__])[0]))


@dataclass
class Passes:
    """Of one rank, for each pass: its seconds, and what its node sent over the link meanwhile."""

    seconds: list[float] = field(default_factory=list)
    sent_bytes: list[int] = field(default_factory=list)


def _in_turn(
    actions: Mapping[str, Callable[[int], None]], passes: int, warm_up: int, ctx: ParallelContext
) -> dict[str, Passes]:
    """Pass after pass of every action, each pass in another order, all ranks together."""
    names = tuple(actions)
    taken = {name: Passes() for name in names}
    for number in range(warm_up + passes):
        for name in turn_order(names, number):
            dist.barrier(group=ctx.groups.control)
            before = sent_bytes()
            dist.barrier(group=ctx.groups.control)  # nobody sends before all have looked
            started = time.perf_counter()
            actions[name](number)
            seconds = time.perf_counter() - started
            dist.barrier(group=ctx.groups.control)
            if number >= warm_up:
                taken[name].seconds.append(seconds)
                taken[name].sent_bytes.append(sent_bytes() - before)
    return taken


@dataclass(frozen=True)
class Collectives:
    """Gathers of one change, or its reductions, by each of ``transports``."""

    kind: Literal["gather", "reduction"]
    change: Change
    transports: tuple[str, ...]
    passes: int
    warm_up: int = 2

    def __call__(self, ctx: ParallelContext) -> dict[str, Passes]:
        resources = LaunchResources()
        topology = Topology(ctx.node_of_rank, inside=Link(1.0, 0.0), across=Link(1.0, 0.0))
        gathers = self.kind == "gather"
        numel = self.change.chunk_bytes // torch.float32.itemsize
        rows = [{chunk: torch.ones(numel) for chunk in self.change.after.chunks_on(ctx.rank)}]

        def action(name: str) -> Callable[[int], None]:
            transport = TRANSPORTS[name](resources)
            schedule = (gather_schedule if gathers else reduce_schedule)(
                [self.change], topology, hierarchical=transport.hierarchical
            )

            def once(number: int) -> None:
                (sparse_all_gather if gathers else sparse_reduce_scatter)(
                    rows,
                    [self.change],
                    schedule=schedule,
                    transport=transport,
                    group=ctx.groups.gather if gathers else ctx.groups.reduce,
                    rank=ctx.rank,
                ).wait()

            return once

        actions = {name: action(name) for name in self.transports}
        return _in_turn(actions, self.passes, self.warm_up, ctx)


@dataclass(frozen=True)
class TrainingSteps:
    """Whole training steps of one policy, ``AWARE`` of the nodes and ``BLIND`` to them.

    To the blind one all ranks are on one node, and copies go straight from owners to all who get
    one; the other's cross to a node once. ``cache``: a folder for what the planner measures.
    ``counts_SYE``: what each rank's tokens choose.
    """

    workload: Workload
    policy: str
    cache: str
    counts_SYE: Counts = field(repr=False)
    passes: int
    warm_up: int

    def __call__(self, ctx: ParallelContext) -> dict[str, Passes]:
        replay = Replay(
            self.counts_SYE,
            top_k=int(str(self.workload.sizes["num_experts_per_tok"])),
            rank=ctx.rank,
        )
        trainers = {
            AWARE: self._trainer(ctx, replay, "hierarchical"),
            BLIND: self._trainer(replace(ctx, node_of_rank=(0,) * ctx.world_size), replay, "p2p"),
        }
        batch = _batch(self.workload, ctx)

        def action(trainer: Trainer) -> Callable[[int], None]:
            def once(number: int) -> None:
                replay.prepare(number)
                trainer.step.run(number, [batch])

            return once

        actions = {name: action(trainer) for name, trainer in trainers.items()}
        return _in_turn(actions, self.passes, self.warm_up, ctx)

    def _trainer(self, ctx: ParallelContext, replay: Replay, transport: str) -> Trainer:
        return _trainer_of(
            self.workload,
            {"policy": self.policy, "transport": transport},
            self.cache,
            ctx,
            replay,
        )


@dataclass(frozen=True)
class HiddenOverLink:
    """Steps with ``copied`` experts of each layer, its most loaded, on all ranks: gathered or not.

    ``counts_YE``: the load of every step, per rank. ``cache`` as in ``TrainingSteps``.
    """

    workload: Workload
    cache: str
    counts_YE: Counts = field(repr=False)
    copied: int
    passes: int
    warm_up: int

    def __call__(self, ctx: ParallelContext) -> tuple[dict[str, Passes], tuple[Alone, ...]]:
        """The steps of this rank, ``gathered`` and ``skipped``, and the gathers alone."""
        replay = Replay(self.counts_YE[None], top_k=self.workload.top_k, rank=ctx.rank)
        gathers = GathersOnRequest()
        trainer = _trainer_of(
            self.workload,
            {"transport": "hierarchical"},
            self.cache,
            ctx,
            replay,
            policy=FixedCopies(self.counts_YE, self.copied),
            gathers_by=gathers,
        )
        batch = _batch(self.workload, ctx)

        def action(skips: bool) -> Callable[[int], None]:
            def once(number: int) -> None:
                gathers.skips = skips
                replay.prepare(number)
                trainer.step.run(number, [batch])

            return once

        actions = {GATHERED: action(False), SKIPPED: action(True)}
        actions[GATHERED](0)  # slots hold no weights before their first gather
        taken = _in_turn(actions, self.passes, self.warm_up, ctx)
        return taken, tuple(gathers_alone(trainer, gathers, ctx) for _ in range(self.passes))


def _trainer_of(
    workload: Workload,
    experts: Mapping[str, object],
    cache: str,
    ctx: ParallelContext,
    replay: Replay,
    *,
    policy: Policy | None = None,
    gathers_by: Callable[[Transport], Transport] | None = None,
) -> Trainer:
    config = RunConfig.model_validate(
        {
            "name": "bench",
            "seed": SEED,
            "model": workload.model.model_dump(),
            "data": {"cache": cache, "sequence_tokens": workload.sequence_tokens},
            "train": {"steps": 1, "batch_sequences": workload.batch_sequences},
            "router": {"balance_loss": 0.0, "z_loss": 0.0},
            "experts": dict(experts),
        }
    )
    return build_trainer(
        config,
        ctx,
        vocab_size=workload.vocab_size,
        phase=lambda name: nullcontext(),
        override=replay,
        policy=policy,
        gathers_by=gathers_by,
    )


def _batch(workload: Workload, ctx: ParallelContext) -> MicroBatch:
    """This rank's part of a step of arbitrary tokens, a document to a row."""
    rows = workload.batch_sequences // ctx.world_size
    generator = torch.Generator().manual_seed(SEED + ctx.rank)
    shape = (rows, workload.sequence_tokens)
    ids_BS = torch.randint(workload.vocab_size, shape, generator=generator)
    positions_BS = torch.arange(workload.sequence_tokens).expand(shape)
    return MicroBatch(ids_BS, ids_BS.roll(-1, 1), positions_BS, (workload.sequence_tokens,) * rows)
