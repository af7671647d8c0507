"""What copies themselves cost: their gathers hidden or not, and gathered twice or kept.

Both under a placement that does not change, with copies in every layer in every step.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch.distributed as dist

from collectives.placement import Placement
from collectives.transports import Launch, LaunchResources, Steps, Transport
from hecate.bench.contest import Laps
from hecate.bench.margins import Course
from hecate.bench.peers import Job
from hecate.bench.replay import Replay
from hecate.bench.strategies import StepFigures, TrainerStrategy
from hecate.mesh import ParallelContext
from hecate.planner.load import Counts, LoadWindow
from hecate.planner.policies import Policy
from hecate.planner.quotas import route
from hecate.train.build import Trainer


class FixedCopies(Policy):
    """The ``most_loaded`` experts of each layer are on every rank, in every step."""

    name = "fixed_copies"

    def __init__(self, counts_YE: Counts, most_loaded: int) -> None:
        self._counts_YE, self._most_loaded = counts_YE, most_loaded

    def plan(
        self, step: int, loads: LoadWindow, owners: tuple[Placement, ...]
    ) -> tuple[Placement, ...]:
        return tuple(
            _with_copies(own, counts_E.tolist(), self._most_loaded)
            for own, counts_E in zip(owners, self._counts_YE, strict=True)
        )

    def route(self, counts_WE: Counts, placement: Placement) -> Counts:
        return route(counts_WE, placement, (0,) * placement.world_size, rule="weighted")


def _with_copies(owners: Placement, loads_E: Sequence[int], most_loaded: int) -> Placement:
    everyone = tuple(range(owners.world_size))
    by_load = sorted(range(owners.num_chunks), key=lambda expert: (-loads_E[expert], expert))
    copied = set(by_load[:most_loaded])
    holders = [everyone if e in copied else own for e, own in enumerate(owners.holders)]
    return Placement(tuple(holders), owners.world_size)


class GathersOnRequest:
    """Makes transports whose gathers move nothing while ``skips`` is set; slots keep what they had.

    ``TrainerStrategy(gathers_by=...)`` takes it.
    """

    def __init__(self) -> None:
        self.skips = False

    def __call__(self, transport: Transport) -> Transport:
        return _OnRequest(transport, self)


class _OnRequest:
    def __init__(self, transport: Transport, request: GathersOnRequest) -> None:
        self._transport, self._request = transport, request
        self.name, self.hierarchical = transport.name, transport.hierarchical
        self.takes_everyone = transport.takes_everyone
        self.resources: LaunchResources = transport.resources

    def gather(self, launch: Launch) -> Steps:
        return iter(()) if self._request.skips else self._transport.gather(launch)

    def reduce(self, launch: Launch) -> Steps:
        return self._transport.reduce(launch)


GATHERED, SKIPPED = "gathered", "skipped"
KEPT, REMATERIALIZED = "kept", "rematerialized"


@dataclass(frozen=True)
class HiddenGather:
    """Steps with their gathers and without, and the gathers alone, ``repeats`` times each.

    ``counts_YE``: the load of every step, per rank. ``most_loaded``: experts copied of each layer.
    """

    job: Job
    counts_YE: Counts = field(repr=False)
    most_loaded: int
    repeats: int

    def __call__(self, ctx: ParallelContext) -> tuple[dict[str, Course], tuple[Alone, ...]]:
        """The steps of this rank, ``gathered`` and ``skipped``, and the gathers alone.

        One trainer does all of it: where gathers are skipped, slots keep the weights of the step
        before, so that everything else is the same.
        """
        gathers = GathersOnRequest()
        strategy = TrainerStrategy(
            self.job,
            ctx,
            _replay(self.job, self.counts_YE, ctx),
            policy=FixedCopies(self.counts_YE, self.most_loaded),
            gathers_by=gathers,
        )
        laps = Laps(
            {
                GATHERED: _Gathering(strategy, gathers, skips=False),
                SKIPPED: _Gathering(strategy, gathers, skips=True),
            },
            ctx,
        )
        laps.run(0, (GATHERED,), timed=False)  # slots hold no weights before their first gather
        for step in range(2 + self.repeats):
            laps.run(step, (GATHERED, SKIPPED), timed=step > 1)
        alone = [gathers_alone(strategy.trainer, gathers, ctx) for _ in range(2 + self.repeats)]
        return laps.courses(), tuple(alone[2:])


def _replay(job: Job, counts_YE: Counts, ctx: ParallelContext) -> Replay:
    return Replay(counts_YE[None], top_k=job.workload.top_k, rank=ctx.rank)


class _Gathering:
    """A trainer's steps with or without their gathers."""

    def __init__(
        self, strategy: TrainerStrategy, gathers: GathersOnRequest, *, skips: bool
    ) -> None:
        self._strategy, self._gathers, self._skips = strategy, gathers, skips

    def prepare(self, step: int) -> None:
        self._gathers.skips = self._skips
        self._strategy.prepare(step)

    def run(self, step: int) -> StepFigures:
        return self._strategy.run(step)

    def slot_bytes(self) -> int:
        return self._strategy.slot_bytes()

    def phases(self) -> Mapping[str, float]:
        return self._strategy.phases()


@dataclass(frozen=True)
class Alone:
    """The gathers of one step while nothing else runs: how long, and how much of it some core of
    this rank was busy, which computation on the same core cannot hide."""

    seconds: float
    busy_s: float


def gathers_alone(trainer: Trainer, gathers: GathersOnRequest, ctx: ParallelContext) -> Alone:
    """One step's gathers, layer after layer, less what the same takes when nothing is moved."""
    moving, still = (_through_layers(trainer, gathers, ctx, skips=skips) for skips in (False, True))
    return Alone(moving.seconds - still.seconds, moving.busy_s - still.busy_s)


def _through_layers(
    trainer: Trainer, gathers: GathersOnRequest, ctx: ParallelContext, *, skips: bool
) -> Alone:
    gathers.skips = skips
    experts = trainer.experts
    placements = experts.policy.plan(0, experts.loads, experts.owners)
    dist.barrier(group=ctx.groups.control)
    started, busy = time.perf_counter(), time.process_time()
    experts.materializer.begin_step(placements, 1)
    for layer in experts.layers:
        experts.materializer.experts(layer.index)
    taken = Alone(time.perf_counter() - started, time.process_time() - busy)
    experts.materializer.finish_step()
    return taken


@dataclass(frozen=True)
class Rematerialization:
    """Steps that keep copies until the backward pass, and steps that gather them again for it."""

    job: Job
    counts_YE: Counts = field(repr=False)
    most_loaded: int
    repeats: int

    def __call__(self, ctx: ParallelContext) -> tuple[dict[str, Course], float]:
        """The steps of this rank, ``kept`` and ``rematerialized``, and the latter's memory.

        That is what copies' weights occupy, in slots of the layer that has most copies.
        """
        strategies = {
            name: TrainerStrategy(
                self.job,
                ctx,
                _replay(self.job, self.counts_YE, ctx),
                experts={"rematerialize": name == REMATERIALIZED},
                policy=FixedCopies(self.counts_YE, self.most_loaded),
            )
            for name in (KEPT, REMATERIALIZED)
        }
        laps = Laps(strategies, ctx)
        for step in range(2 + self.repeats):
            laps.run(step, (KEPT, REMATERIALIZED), timed=step > 1)
        again = strategies[REMATERIALIZED].trainer.experts
        placements = again.policy.plan(0, again.loads, again.owners)
        one_layer = max(
            (len(placement.chunks_on(ctx.rank)) - len(shard.expert_ids))
            * shard.layer.layout.numel
            * shard.compute_dtype.itemsize
            for placement, shard in zip(placements, again.shards, strict=True)
        )
        extra = again.materializer.weight_slot_bytes / one_layer if one_layer else 0.0
        return laps.courses(), extra
