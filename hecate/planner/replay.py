"""Replay: what a policy would have done with the loads that a run recorded. Pure.

Step by step as the runtime does it: a plan from the loads before, further copies once the counts of
a micro-batch are known, quotas, and after the step new owners. No expert is there and no time
passes; what the step would have taken follows from the planner's costs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from collectives.placement import Placement
from collectives.topology import Topology
from hecate.planner.costs import Seconds, StepCosts, exposed_s
from hecate.planner.load import Counts, Loads, LoadWindow
from hecate.planner.mispredictions import Mispredictions, mispredictions
from hecate.planner.plan import Replicas, owners_table
from hecate.planner.policies.protocol import Policy

Routed = tuple[tuple[Counts, ...], ...]
"""``[micro-batch][layer]``: slots of each source rank for each expert, ``[W, E]`` int64."""

MOVED_ROWS = 3  # of an expert that changes owners: its master weights and two moments


@dataclass(frozen=True)
class RoutedStep:
    """What the routers chose in step ``step``, counted from 0."""

    step: int
    routed: Routed


@dataclass(frozen=True)
class ReplayedStep:
    """One step under one policy.

    ``owners``, ``planned``, ``held``: each layer's owners, holders by the plan, and holders at the
    end of the step. ``owned_YW``: slots of each rank if all went to their expert's owner;
    ``computed_YW``: slots that it computed. ``informed_YW``: what it would have computed if the
    same plan had been made from the step's own loads. ``missed``: each layer's mispredictions.
    ``error_Y``: how far the predicted loads were off (``prediction_error``). ``moves``: experts
    with another owner after the step. ``waits_Y``: seconds that ranks wait on average for each
    layer's busiest. ``experts_s``: seconds of the experts by the cost model, waits, transfers and
    moves among them, and ``ceiling_s`` with slots spread evenly for free.
    """

    step: int
    owners: tuple[Placement, ...]
    planned: tuple[Placement, ...]
    held: tuple[Placement, ...]
    owned_YW: Counts
    computed_YW: Counts
    informed_YW: Counts
    missed: tuple[Mispredictions, ...]
    error_Y: Loads
    moves: int
    waits_Y: Seconds
    experts_s: float
    ceiling_s: float

    @property
    def planned_copies(self) -> Counts:
        """Copies of each layer beyond the owners' that the plan made."""
        return _copies(self.planned)

    @property
    def late_copies(self) -> Counts:
        """Copies of each layer that were added after the gate."""
        return _copies(self.held) - _copies(self.planned)


def replay(
    policy: Policy,
    steps: Iterable[RoutedStep],
    owners: Sequence[Placement],
    costs: StepCosts,
    topology: Topology,
    *,
    window: Counts | None = None,
) -> Iterator[ReplayedStep]:
    """Each step under ``policy``, which keeps its state from one to the next.

    ``owners``: those before the first step. ``window``: loads of the steps before the first,
    ``[w, Y, E]``. Counts of another number of sources than the owners have ranks are dealt out
    alike. The policy is used up: give each replay one of its own.
    """
    now = tuple(owners)
    world_size = topology.world_size
    loads = LoadWindow(len(now), max(own.num_chunks for own in now))
    if window is not None:
        loads.restore(window)
    for each in steps:
        routed = tuple(
            tuple(deal_out(counts_SE, world_size) for counts_SE in layers) for layers in each.routed
        )
        counts_YE = total_counts(routed, loads.predict().shape[1])
        known = LoadWindow(*counts_YE.shape)
        known.push(counts_YE)
        informed = copy.deepcopy(policy)
        error_Y = prediction_error(loads.predict(), counts_YE, [own.num_chunks for own in now])
        planned = policy.plan(each.step, loads, now)
        held, computed = _dispatched(policy, planned, routed)
        _, knowing = _dispatched(informed, informed.plan(each.step, known, now), routed)
        loads.push(counts_YE)
        after = policy.new_owners(each.step, loads, now)
        moved_WW = _moves(now, after, world_size)
        computed_YW = np.stack([slots_EW.sum(0) for slots_EW in computed])
        transfers_Y = transfers_s(now, planned, held, costs, topology)
        experts_s = float((computed_YW.max(1) * costs.slot_s + transfers_Y).sum())
        yield ReplayedStep(
            step=each.step,
            owners=now,
            planned=planned,
            held=held,
            owned_YW=_owned(counts_YE, now),
            computed_YW=computed_YW,
            informed_YW=np.stack([slots_EW.sum(0) for slots_EW in knowing]),
            missed=tuple(map(mispredictions, now, planned, held, computed)),
            error_Y=error_Y,
            moves=int(moved_WW.sum()),
            waits_Y=(computed_YW.max(1) - computed_YW.mean(1)) * costs.slot_s,
            experts_s=experts_s + _moves_s(moved_WW, costs, topology),
            ceiling_s=float(computed_YW.mean(1).sum()) * costs.slot_s,
        )
        now = after


def transfers_s(
    owners: Sequence[Placement],
    planned: Sequence[Placement],
    held: Sequence[Placement],
    costs: StepCosts,
    topology: Topology,
) -> Seconds:
    """Seconds that copies add to each layer, ``[Y]``.

    What attention does not hide of planned ones, and all of those that were added after the gate.
    """
    triples = [
        (layer, expert, rank)
        for layer, (own, early) in enumerate(zip(owners, planned, strict=True))
        for expert, (before, after) in enumerate(zip(own.holders, early.holders, strict=True))
        for rank in after
        if rank not in before
    ]
    owners_YE = owners_table(owners, max(own.num_chunks for own in owners))
    exposed_Y = exposed_s(Replicas.of(triples), owners_YE, topology, costs)
    ranks = range(topology.world_size)
    late_Y = [
        max(len(late.chunks_on(rank)) - len(early.chunks_on(rank)) for rank in ranks)
        for early, late in zip(planned, held, strict=True)
    ]
    added_Y: Seconds = exposed_Y + np.array(late_Y) * costs.late_copy_s(topology)
    return added_Y


def prediction_error(predicted_YE: Loads, counts_YE: Counts, num_experts: Sequence[int]) -> Loads:
    """Of each layer, the share of slots that went elsewhere than predicted, ``[Y]``, 0 to 1.

    Half of the summed differences between predicted and true shares of the experts. Where nothing
    was predicted, an even spread over the layer's ``num_experts`` counts as the prediction, and a
    layer without slots has no error.
    """
    errors = []
    for predicted_E, counts_E, experts in zip(predicted_YE, counts_YE, num_experts, strict=True):
        total, expected = float(counts_E.sum()), float(predicted_E.sum())
        share_E = predicted_E[:experts] / expected if expected else np.full(experts, 1 / experts)
        off_E = np.abs(share_E - counts_E[:experts] / total) if total else np.zeros(experts)
        errors.append(float(off_E.sum()) / 2)
    return np.array(errors)


def total_counts(routed: Routed, num_experts: int) -> Counts:
    """Slots for each expert over all sources and micro-batches, ``[Y, num_experts]``."""
    counts_YE = np.zeros((len(routed[0]), num_experts), dtype=np.int64)
    for layers in routed:
        for layer, counts_SE in enumerate(layers):
            counts_YE[layer, : counts_SE.shape[1]] += counts_SE.sum(0)
    return counts_YE


def deal_out(counts_SE: Counts, world_size: int) -> Counts:
    """Counts by source for ``world_size`` sources, each expert's alike where they are others."""
    if len(counts_SE) == world_size:
        return counts_SE
    each_E, more_E = np.divmod(counts_SE.sum(0), world_size)
    place_WE = (np.arange(world_size)[:, None] - np.arange(len(each_E))) % world_size
    dealt: Counts = each_E + (place_WE < more_E)
    return dealt


def _dispatched(
    policy: Policy, planned: tuple[Placement, ...], routed: Routed
) -> tuple[tuple[Placement, ...], list[Counts]]:
    """Holders at the end of the step, and each layer's slots by expert and rank, ``[E, W]``."""
    held = list(planned)
    computed = [np.zeros((p.num_chunks, p.world_size), dtype=np.int64) for p in planned]
    for layers in routed:
        for layer, counts_WE in enumerate(layers):
            held[layer] = policy.after_gate(layer, counts_WE, held[layer])
            computed[layer] += policy.route(counts_WE, held[layer]).sum(0)
    return tuple(held), computed


def _copies(placements: Sequence[Placement]) -> Counts:
    return np.array([sum(map(len, each.holders)) - each.num_chunks for each in placements])


def _owned(counts_YE: Counts, owners: Sequence[Placement]) -> Counts:
    owned_YW = np.zeros((len(owners), owners[0].world_size), dtype=np.int64)
    for layer, own in enumerate(owners):
        np.add.at(owned_YW[layer], list(own.owners), counts_YE[layer, : own.num_chunks])
    return owned_YW


def _moves(before: Sequence[Placement], after: Sequence[Placement], world_size: int) -> Counts:
    """Experts that go from each rank to each other one, ``[W, W]``."""
    moved_WW = np.zeros((world_size, world_size), dtype=np.int64)
    for old, new in zip(before, after, strict=True):
        for source, target in zip(old.owners, new.owners, strict=True):
            moved_WW[source, target] += source != target
    return moved_WW


def _moves_s(moved_WW: Counts, costs: StepCosts, topology: Topology) -> float:
    busiest = int(max(moved_WW.sum(0).max(), moved_WW.sum(1).max()))
    copy_bytes = costs.gather_bytes + costs.reduce_bytes
    if not busiest or not copy_bytes:
        return 0.0
    share = MOVED_ROWS * costs.reduce_bytes / copy_bytes
    return busiest * share * costs.late_copy_s(topology)
