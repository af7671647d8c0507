"""A policy over a whole trace of loads: who holds what in each step, and what that asks of links.

Plans, re-sharding and dispatch are the runtime's own. Pure.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from collectives.placement import Placement
from hecate.planner.load import Counts, LoadWindow
from hecate.planner.policies import Policy
from hecate.simulate.costs import Costs
from hecate.simulate.loads import even_counts
from hecate.simulate.network import Links
from hecate.simulate.step import LayerWork


@dataclass(frozen=True)
class Trace:
    """Loads of one workload on one group: every step's ``[Y, E]``, timed steps' ``[W, E]``."""

    totals: tuple[Counts, ...]
    timed: dict[int, tuple[Counts, ...]]

    @classmethod
    def alike(cls, counts_SYE: Counts, world_size: int, timed: Sequence[int]) -> Trace:
        """Every rank's tokens choose ``counts_SYE[step, layer]``."""
        return cls(
            tuple(counts_SYE * world_size),
            {
                step: tuple(np.tile(counts_E, (world_size, 1)) for counts_E in counts_SYE[step])
                for step in timed
            },
        )


@dataclass(frozen=True)
class Group:
    """Ranks that share one copy of the experts, under one policy.

    ``owners``: of each layer before the first step. ``expert_state_bytes``: what moves with an
    expert that changes its owner. ``even_choices``: routing is overridden to be even.
    """

    policy: Policy
    links: Links
    costs: Costs
    owners: tuple[Placement, ...]
    expert_state_bytes: int
    even_choices: bool = False

    @property
    def world_size(self) -> int:
        return self.owners[0].world_size


@dataclass(frozen=True)
class PlayedStep:
    """One timed step. ``copies_YW``: experts that ranks hold beside their own.

    ``imbalance``: busiest rank over mean, of slots that ranks compute; mean of layers.
    """

    layers: tuple[LayerWork, ...]
    copies_YW: npt.NDArray[np.int64]
    imbalance: float


@dataclass(frozen=True)
class Played:
    """``steps``: the timed ones in order. ``moved_s``: of re-sharding after each step, of all."""

    steps: tuple[PlayedStep, ...]
    moved_s: tuple[float, ...]


def play(group: Group, trace: Trace, *, planned: Container[int]) -> Played:
    """Let the policy plan the steps in ``planned``, and re-shard after every step.

    Of the others it sees the loads alone, which is enough for one that remembers no plan.
    """
    owners, window = group.owners, LoadWindow(*trace.totals[0].shape)
    steps, moved_s = [], []
    for step, counts_YE in enumerate(trace.totals):
        holders = owners
        if step in planned:
            holders = group.policy.plan(step, window, owners)
        if step in trace.timed:
            steps.append(_timed(group, trace.timed[step], owners, holders))
        window.push(counts_YE)
        new = group.policy.new_owners(step, window, owners)
        moved_s.append(0.0 if new is owners else _moves_s(group, owners, new))
        owners = new
    return Played(tuple(steps), tuple(moved_s))


def _timed(
    group: Group,
    counts: Sequence[Counts],
    owners: Sequence[Placement],
    planned: Sequence[Placement],
) -> PlayedStep:
    layers, copies, uneven = [], [], []
    ranks = range(group.world_size)
    for index, (counts_WE, own, plan) in enumerate(zip(counts, owners, planned, strict=True)):
        if group.even_choices:
            slots = int(counts_WE[0].sum())
            counts_WE = even_counts(slots, own.num_chunks, group.world_size)
        placement = group.policy.after_gate(index, counts_WE, plan)
        work = layer_work(group, counts_WE, own, plan, placement)
        layers.append(work)
        copies.append([len(placement.chunks_on(r)) - len(own.chunks_on(r)) for r in ranks])
        uneven.append(float(work.slots_W.max() / work.slots_W.mean()))
    return PlayedStep(tuple(layers), np.array(copies), float(np.mean(uneven)))


def _moves_s(group: Group, old: Sequence[Placement], new: Sequence[Placement]) -> float:
    """Seconds of moving experts that change owners, all layers in one exchange."""
    moved_WW = np.zeros((group.world_size, group.world_size), dtype=np.int64)
    for before, after in zip(old, new, strict=True):
        np.add.at(moved_WW, (before.owners, after.owners), 1)
    return group.links.exchange(moved_WW, group.expert_state_bytes).alone_s


def layer_work(
    group: Group,
    counts_WE: Counts,
    owners: Placement,
    planned: Placement,
    placement: Placement,
) -> LayerWork:
    """What one layer asks of ranks and links.

    ``planned``: the holders before the gate decided, ``placement``: those after.
    """
    links, costs = group.links, group.costs
    quotas_WEW = group.policy.route(counts_WE, placement)
    late = None
    if placement is not planned and placement.holders != planned.holders:
        holders = (
            tuple(sorted({*own, *(set(now) - set(then))}))
            for own, then, now in zip(
                owners.holders, planned.holders, placement.holders, strict=True
            )
        )
        added = Placement(tuple(holders), owners.world_size)
        late = links.copies(owners, added, costs.gather_bytes)
    return LayerWork(
        slots_W=quotas_WEW.sum((0, 1)),
        busy_W=(quotas_WEW.sum(0) > 0).sum(0),
        exchange=links.exchange(quotas_WEW.sum(1), costs.row_bytes),
        gather=links.copies(owners, planned, costs.gather_bytes),
        reduce=links.reduction(owners, placement, costs.reduce_bytes),
        late=late,
    )


def even_owners(num_experts: int, world_size: int, num_layers: int) -> tuple[Placement, ...]:
    """Homogeneous sharding, the odd experts on every rank in turn."""
    odd = num_experts % world_size
    return tuple(
        Placement.even(num_experts, world_size, rotation=layer * odd % world_size)
        for layer in range(num_layers)
    )
