"""What a token, a copy and their overlap cost on this machine, measured when training starts.

Once for each machine, expert and dtype: later runs find the numbers again, and so plan the same.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from collectives.placement import Placement
from collectives.schedule import Change, Schedule, gather_schedule, reduce_schedule
from collectives.sparse import Handle, sparse_all_gather, sparse_reduce_scatter
from collectives.token_exchange import exchange_rows
from collectives.topology import Link, Topology
from collectives.transports import TRANSPORTS, LaunchResources
from hecate.fssdp.config import CostsConfig
from hecate.fssdp.experts import AdaptedExperts, ExpertMath, HeldExperts, kernel_of
from hecate.fssdp.remembered import machine_digest, remembered
from hecate.fssdp.replicas import ReplicaSlots
from hecate.mesh import ParallelContext
from hecate.models.families import MoELayer
from hecate.models.lora import AdaptedLayer
from hecate.planner.costs import NO_LIMIT, StepCosts

ROWS = 256
EXCHANGED_ROWS = 2048  # as many as a batch has: few rows would stay in a cache
TRIPS = 4  # of a slot's row that another rank computes: there and back, forward and backward
COPIES = 4  # in one launch, as a layer has them: a single one is done before the next is in its way
MOST_EXPOSED = 3.0  # beyond that, tiny transfers measure nothing but their launch
REPEATS = 5
NUMBERS = (
    "slot_s",
    "inside_copy_s",
    "across_copy_s",
    "exposed_share",
    "inside_row_s",
    "across_row_s",
    "both_ways",
)
Pair = tuple[int, int]
Once = Callable[[], None]
# A world of one rank moves nothing; so fast that nothing waits for it.
UNBOUNDED = Link(1e15, 0.0)


@dataclass(frozen=True)
class Costs:
    """What policies reckon with: seconds and bytes, and who is how far from whom."""

    step: StepCosts
    topology: Topology


def measured_costs(
    config: CostsConfig,
    module: nn.Module,
    layer: MoELayer,
    ctx: ParallelContext,
    *,
    dtype: torch.dtype,
    compute_dtype: torch.dtype,
    folder: Path,
) -> Costs:
    """The costs of ``layer``, whose experts are ``module``'s: as configured, else measured.

    Collective over all ranks; every rank gets the same numbers. Measurements are kept in
    ``folder``. What attention hides is not known yet, unless it is configured.
    """
    bench = _Bench(module, layer, ctx, dtype, compute_dtype)
    given = [config.slot_s, config.copy_s, config.copy_s, 0.0, config.row_s, config.row_s]
    numbers = [*given, 1.0]
    if ctx.world_size > 1 and not (config.slot_s and config.copy_s):
        digest = machine_digest(ctx, *_sizes(layer), dtype, compute_dtype, COPIES)
        *found, both_ways = remembered(
            folder / f"{digest}.json",
            NUMBERS,
            bench.run,
            dist.ReduceOp.MAX,
            ctx,
        )
        numbers = [own or there for own, there in zip(given, found, strict=True)] + [both_ways]
    slot_s, inside_s, across_s, exposed_share, row_s, row_across_s, both_ways = numbers
    gather_bytes = layer.layout.numel * compute_dtype.itemsize
    reduce_bytes = layer.layout.numel * dtype.itemsize
    inside, across = (
        Link((gather_bytes + reduce_bytes) / copy_s, 0.0) if copy_s else UNBOUNDED
        for copy_s in (inside_s, across_s)
    )
    step = StepCosts(
        slot_s=slot_s,
        gather_bytes=gather_bytes,
        reduce_bytes=reduce_bytes,
        hidden_gather_s=config.hidden_s,
        hidden_reduce_s=2 * config.hidden_s,
        overlap=1.0 if config.hidden_s else 1.0 - min(MOST_EXPOSED, exposed_share),
        slots_per_rank=config.slots_per_rank or NO_LIMIT,
        row_s=row_s,
        row_across_s=row_across_s,
        both_ways=both_ways,
    )
    return Costs(step, Topology(ctx.node_of_rank, inside=inside, across=across))


class _Bench:
    """Times one expert of a layer, with weights of zero."""

    def __init__(
        self,
        module: nn.Module,
        layer: MoELayer,
        ctx: ParallelContext,
        dtype: torch.dtype,
        compute_dtype: torch.dtype,
    ) -> None:
        self._module, self._layer, self._ctx = module, layer, ctx
        self._dtype, self._compute_dtype = dtype, compute_dtype

    def run(self) -> Sequence[float]:
        """``NUMBERS``: seconds of a slot, of a copy inside a node and across, and so on.

        A copy is an expert's weights to another rank and its gradient back, with nothing beside
        but other copies. Where no two ranks share a node, or all do, both classes of link are the
        one there is.
        """
        nodes = Topology(self._ctx.node_of_rank, inside=UNBOUNDED, across=UNBOUNDED).nodes
        within = next(((ranks[0], ranks[1]) for ranks in nodes if len(ranks) > 1), None)
        between = (nodes[0][0], nodes[1][0]) if len(nodes) > 1 else None
        compute = self._computation()
        compute_s = self._fastest_s(compute)
        taken_s = [self._copy_s(pair) if pair else 0.0 for pair in (within, between)]
        inside_s, across_s = taken_s[0] or taken_s[1], taken_s[1] or taken_s[0]
        exposed = self._exposed_share(within or between, compute, compute_s)
        rows_s = [self._row_s(pair) if pair else 0.0 for pair in (within, between)]
        row_s, row_across_s = rows_s[0] or rows_s[1], rows_s[1] or rows_s[0]
        ways = self._both_ways(within or between)
        return compute_s / ROWS, inside_s, across_s, exposed, row_s, row_across_s, ways

    def _computation(self) -> Once:
        """``ROWS`` rows through one expert, forward and backward."""
        layer, device, dtype = self._layer, self._ctx.device, self._compute_dtype
        math = ExpertMath.of(self._module, layer.name)
        buffers = (torch.zeros(1, layer.layout.numel, device=device, dtype=dtype) for _ in range(2))
        held: list[HeldExperts] = [ReplicaSlots(layer, (0,), *buffers)]
        if isinstance(layer, AdaptedLayer):
            frozen_1C = torch.zeros(1, layer.frozen.numel, device=device, dtype=dtype)
            tensors = {name: view[0] for name, view in layer.frozen.views(frozen_1C).items()}
            held = [AdaptedExperts(held[0], (tensors,))]
        kernel = kernel_of(layer, device, dtype)
        x_RD = torch.zeros(ROWS, self._width(), device=device, dtype=dtype)
        weights_R = torch.ones(ROWS, device=device, dtype=dtype)

        def once() -> None:
            with torch.no_grad():
                y_RD, saved = kernel.forward(x_RD, weights_R, [ROWS], held, math)
                kernel.backward(y_RD, x_RD, weights_R, saved, [ROWS], held, math)

        return once

    def _width(self) -> int:
        """The model's *D*."""
        math = ExpertMath.of(self._module, self._layer.name)
        shape = next(t.shape for t in self._layer.expert_layout.tensors if t.name == math.down)
        return shape[1] if math.transposed else shape[0]

    def _row_s(self, pair: Pair) -> float:
        """What a slot that the other rank computes adds at each of the two."""
        ctx = self._ctx
        rows_W = [0] * ctx.world_size
        if ctx.rank in pair:
            rows_W[pair[1 - pair.index(ctx.rank)]] = EXCHANGED_ROWS
        shape = (sum(rows_W), self._width())
        rows_RD = torch.zeros(shape, device=ctx.device, dtype=self._compute_dtype)

        def exchange() -> None:
            exchange_rows(rows_RD, rows_W, rows_W, ctx.groups.tokens)

        # each trip has EXCHANGED_ROWS out and as many in
        return self._fastest_s(exchange) * TRIPS / (2 * EXCHANGED_ROWS)

    def _both_ways(self, pair: Pair | None) -> float:
        """Gathers in opposite directions at once, over those of one alone; from 1 to 2."""
        if pair is None:
            return 1.0

        def gathers_s(owners: Sequence[int]) -> float:
            gather = self._launch(
                pair, sparse_all_gather, gather_schedule, self._compute_dtype, owners
            )
            return self._fastest_s(lambda: gather().wait())

        half = COPIES // 2
        return min(2.0, max(1.0, gathers_s(pair * half) / gathers_s(pair[:1] * half)))

    def _copy_s(self, pair: Pair) -> float:
        gather = self._launch(pair, sparse_all_gather, gather_schedule, self._compute_dtype)
        reduction = self._launch(pair, sparse_reduce_scatter, reduce_schedule, self._dtype)

        def once() -> None:
            gather().wait()
            reduction().wait()

        return self._fastest_s(once) / COPIES

    def _exposed_share(self, pair: Pair | None, compute: Once, compute_s: float) -> float:
        """How much longer computation takes beside gathers, over what the gathers take alone."""
        if pair is None:
            return 0.0
        gather = self._launch(pair, sparse_all_gather, gather_schedule, self._compute_dtype)
        gather_s = self._fastest_s(lambda: gather().wait())
        times = 1 + int(1.5 * gather_s / compute_s)

        def computing() -> None:
            for _ in range(times):
                compute()

        def together() -> None:
            moving = gather()
            computing()
            moving.wait()

        # In turn, and their median: a machine that is busy for a while slows both of a pair.
        added_s = [self._seconds(together) - self._seconds(computing) for _ in range(2 * REPEATS)]
        return max(0.0, statistics.median(added_s) / gather_s)

    def _launch(
        self,
        pair: Pair,
        collective: Callable[..., Handle],
        schedule_of: Callable[..., Schedule],
        dtype: torch.dtype,
        owned_by: Sequence[int] = (),
    ) -> Callable[[], Handle]:
        """A collective that moves an expert of each owner to the pair's other rank, or back.

        ``owned_by``: of the pair; where nobody is said, its first rank owns all of ``COPIES``.
        """
        ctx, numel, owned_by = self._ctx, self._layer.layout.numel, owned_by or pair[:1] * COPIES
        owners = Placement.from_owners(list(owned_by), ctx.world_size)
        copied = Placement((tuple(sorted(pair)),) * len(owned_by), ctx.world_size)
        changes = [Change(owners, copied, numel * dtype.itemsize)]
        rows = {
            expert: torch.zeros(numel, device=ctx.device, dtype=dtype)
            for expert in range(len(owned_by) if ctx.rank in pair else 0)
        }
        topology = Topology.single_node(ctx.world_size, UNBOUNDED)
        return partial(
            collective,
            [rows],
            changes,
            schedule=schedule_of(changes, topology, hierarchical=False),
            transport=TRANSPORTS["p2p"](LaunchResources()),
            group=ctx.groups.gather,
            rank=ctx.rank,
        )

    def _fastest_s(self, once: Once) -> float:
        return min([self._seconds(once) for _ in range(1 + REPEATS)][1:])

    def _seconds(self, once: Once) -> float:
        started = time.perf_counter()
        once()
        if self._ctx.device.type == "cuda":
            torch.cuda.synchronize(self._ctx.device)
        return time.perf_counter() - started


def _sizes(layer: MoELayer) -> tuple[int, ...]:
    """Elements of an expert that travel, and of one that is frozen."""
    frozen = (layer.frozen.numel,) if isinstance(layer, AdaptedLayer) else ()
    return (layer.layout.numel, *frozen)
