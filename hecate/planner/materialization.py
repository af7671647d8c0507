"""Which experts are copied to which ranks for one step (2502.02581, section 4.2). Pure.

``materialize_by_load`` is the paper's Algorithm 1: the most loaded experts, as many as overlap and
memory allow. ``materialize_by_time`` makes only the copies that shorten the predicted step.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from collectives.topology import Topology
from hecate.planner.costs import NO_LIMIT, StepCosts, predicted_layer_s
from hecate.planner.load import Loads
from hecate.planner.nearer import bring_nearer
from hecate.planner.plan import Ids, Replicas
from hecate.planner.spreading import LOAD_BITS, UNIT_BITS, Turns, Whole, spread
from hecate.planner.travel import Copy
from hecate.planner.worthwhile import LayerSearch

LEAST_IMBALANCE = 1.05
SEARCHED_RANKS = 64  # beyond that, a search of single copies takes too long


def materialize_by_load(
    loads_YE: Loads,
    owners_YE: Ids,
    node_of_rank: Sequence[int],
    *,
    overlap_experts: int,
    slots_per_rank: int,
    receive_budget: int = NO_LIMIT,
    send_budget: int = NO_LIMIT,
    least_imbalance: float = LEAST_IMBALANCE,
) -> Replicas:
    """Algorithm 1 over all layers at once.

    ``loads_YE``: predicted slots, from 0 up. ``owners_YE``: the rank that owns each expert.
    ``overlap_experts`` is the paper's *t*, the most experts of a layer that travel, and
    ``slots_per_rank`` its *m*, the most copies that a rank has memory for. ``receive_budget``: the
    most copies of a layer that a rank receives; ``send_budget``: the most times that an expert of
    a layer crosses from the node that owns it to another one.

    With t <= m every hot expert goes everywhere. Otherwise the slots of all ranks are given out one
    by one, each to the expert with the most load for each of its holders, and ``spread`` says
    where they are. A layer whose busiest rank has at most ``least_imbalance`` times the mean keeps
    its owners alone. Experts without load are never hot. Ties go to the lower expert.
    """
    check_loads(loads_YE, owners_YE, len(node_of_rank))
    num_layers, num_experts = loads_YE.shape
    world_size = len(node_of_rank)
    hot = min(overlap_experts, num_experts)
    slots = min(slots_per_rank, receive_budget, hot)
    if min(hot, slots, num_layers) < 1 or world_size == 1:
        return Replicas.none()
    units_YE = whole_units(loads_YE)
    uneven_Y = _unevenly_loaded(units_YE, owners_YE, world_size, least_imbalance)
    if not uneven_Y.any():
        return Replicas.none()
    hottest = np.argsort(-units_YE, axis=1, kind="stable")[:, :hot]
    units = np.take_along_axis(units_YE, hottest, axis=1)
    most = world_size - 1
    if hot == slots:
        copies = np.where(units > 0, most, 0)
    else:
        copies = _by_load_of_each_holder(units, hottest, world_size * slots, most)
    copies[~uneven_Y] = 0
    coarser = UNIT_BITS - LOAD_BITS
    share = (units // (copies + 1)) >> coarser
    resting_YE = units_YE >> coarser
    np.put_along_axis(resting_YE, hottest, share, axis=1)
    turns = Turns(hottest, copies, share, resting_YE)
    return spread(turns, owners_YE, node_of_rank, slots_per_rank=slots, send_budget=send_budget)


def check_loads(loads_YE: Loads, owners_YE: Ids, world_size: int) -> None:
    """Raise ``ValueError`` unless both are ``[layers, experts]``, loads and owners in range."""
    if loads_YE.ndim != 2 or loads_YE.shape != owners_YE.shape:
        raise ValueError(
            f"loads of shape {loads_YE.shape} and owners of shape {owners_YE.shape}; "
            "expected both [layers, experts]"
        )
    if not loads_YE.size:
        return
    if not (np.isfinite(loads_YE).all() and loads_YE.min() >= 0):
        raise ValueError("a load is negative or not finite; expected finite numbers from 0 up")
    if owners_YE.min() < 0 or owners_YE.max() >= world_size:
        raise ValueError(
            f"owners from {owners_YE.min()} to {owners_YE.max()}; expected ranks in "
            f"[0, {world_size})"
        )


def whole_units(loads_YE: Loads) -> Whole:
    """Loads as whole numbers, rounded down, so that sums and comparisons are exact.

    Of each layer by a power of two of its own, so that its total is below 2^30.
    """
    largest_Y = loads_YE.max(1) * loads_YE.shape[1]
    _, exponent_Y = np.frexp(largest_Y)
    units_YE: Whole = np.ldexp(loads_YE, (UNIT_BITS - exponent_Y)[:, None]).astype(np.int64)
    return units_YE


def _unevenly_loaded(
    units_YE: Whole, owners_YE: Ids, world_size: int, least_imbalance: float
) -> npt.NDArray[np.bool_]:
    num_layers = len(units_YE)
    place_YE = owners_YE + np.arange(num_layers)[:, None] * world_size
    loads = np.bincount(place_YE.ravel(), units_YE.ravel(), minlength=num_layers * world_size)
    busiest_Y = loads.reshape(num_layers, world_size).max(1)
    uneven: npt.NDArray[np.bool_] = busiest_Y * world_size > least_imbalance * units_YE.sum(1)
    return uneven


def _by_load_of_each_holder(units: Whole, experts: Whole, slots: int, most: int) -> Whole:
    """How many of ``slots`` each expert gets, at most ``most``: ``[Y, t]``, as ``units``.

    One by one, each slot goes to the expert with the largest load over holders (as EPLB does),
    which is how the d'Hondt method deals out seats. It never gives a party less than its share
    rounded down, so that these are given at once and only the few that remain one by one.
    """
    by_id = np.argsort(experts, axis=1)
    units = np.take_along_axis(units, by_id, axis=1)
    copies = np.zeros_like(units)
    capped = units == 0
    while True:
        left_Y = slots - np.where(capped, copies, 0).sum(1)
        total_Y = np.where(capped, 0, units).sum(1)
        quota = units * left_Y[:, None] // np.maximum(total_Y, 1)[:, None]
        copies = np.where(capped, copies, np.minimum(quota, most))
        full = ~capped & (copies == most)
        if not full.any():
            break
        capped |= full
    left_Y = slots - copies.sum(1)
    per_holder = np.where(capped, -1.0, units / (copies + 1))
    rows = np.arange(len(units))
    while True:
        best_Y = per_holder.argmax(1)
        goes = (left_Y > 0) & (per_holder[rows, best_Y] > 0)
        if not goes.any():
            break
        at, best = rows[goes], best_Y[goes]
        copies[at, best] += 1
        left_Y[at] -= 1
        given = copies[at, best]
        per_holder[at, best] = np.where(given < most, units[at, best] / (given + 1), -1.0)
    result = np.empty_like(copies)
    np.put_along_axis(result, by_id, copies, axis=1)
    return result


def materialize_by_time(
    loads_YE: Loads,
    owners_YE: Ids,
    topology: Topology,
    costs: StepCosts,
    *,
    overlap_experts: int,
    slots_per_rank: int,
    receive_budget: int = NO_LIMIT,
    send_budget: int = NO_LIMIT,
    least_imbalance: float = LEAST_IMBALANCE,
    levels: bool = True,
) -> Replicas:
    """The copies of each layer with which it is predicted to be fastest; none that does not pay.

    Up to ``SEARCHED_RANKS`` ranks ``LayerSearch`` adds one copy at a time, up to the best point,
    and ``bring_nearer`` those of hot experts whose slots then need not travel.
    With more ranks it is the best of no copies and the forms of ``materialize_by_load``: with all
    experts and slots, with half of them and so on; of equals, the one with the fewest copies.
    Arguments are those of ``materialize_by_load``. Without ``levels`` a layer gets only what
    ``bring_nearer`` finds: its load is levelled some other way.
    """
    check_loads(loads_YE, owners_YE, topology.world_size)
    hot = min(overlap_experts, loads_YE.shape[1])
    slots = min(slots_per_rank, receive_budget, hot)
    if min(hot, slots, len(loads_YE)) < 1 or topology.world_size == 1:
        return Replicas.none()
    units_YE = whole_units(loads_YE)
    uneven_Y = _unevenly_loaded(units_YE, owners_YE, topology.world_size, least_imbalance)
    if topology.world_size <= SEARCHED_RANKS:
        limits = {"slots_per_rank": slots, "send_budget": send_budget, "overlap_experts": hot}
        layers = zip(loads_YE.tolist(), owners_YE.tolist(), uneven_Y.tolist(), strict=True)
        triples = []
        for layer, (loads, owners, uneven) in enumerate(layers):
            found: list[Copy] = []
            if uneven and levels:
                found = LayerSearch(loads, owners, topology, costs, **limits).run()
            if costs.row_s or costs.row_across_s:
                found = bring_nearer(loads, owners, found, topology, costs, **limits)
            triples += [(layer, expert, rank) for expert, rank in found]
        return Replicas.of(triples)
    if not (levels and uneven_Y.any()):
        return Replicas.none()
    sizes = [(hot, slots)]
    while max(sizes[-1]) > 1:
        sizes.append((max(1, sizes[-1][0] // 2), max(1, sizes[-1][1] // 2)))
    candidates = [Replicas.none()]
    for fewer_hot, fewer_slots in sizes:
        candidates.append(
            materialize_by_load(
                loads_YE,
                owners_YE,
                topology.node_of_rank,
                overlap_experts=fewer_hot,
                slots_per_rank=fewer_slots,
                send_budget=send_budget,
                least_imbalance=least_imbalance,
            )
        )
    return _fastest(candidates, loads_YE, owners_YE, topology, costs)


def _fastest(
    candidates: Sequence[Replicas],
    loads_YE: Loads,
    owners_YE: Ids,
    topology: Topology,
    costs: StepCosts,
) -> Replicas:
    """Layer by layer, the candidate with the least predicted time, then the fewest copies."""
    # Candidates are layers to the prediction, so that all are looked at in one go.
    num_layers, times = len(loads_YE), (len(candidates), 1)
    together = Replicas(
        np.concatenate([each.layer + at * num_layers for at, each in enumerate(candidates)]),
        np.concatenate([each.expert for each in candidates]),
        np.concatenate([each.rank for each in candidates]),
    )
    seconds = predicted_layer_s(
        np.tile(loads_YE, times),
        np.tile(owners_YE, times),
        together,
        topology,
        costs,
        levelled=False,
    ).reshape(len(candidates), num_layers)
    number = np.array([np.bincount(each.layer, minlength=len(loads_YE)) for each in candidates])
    fewest = np.where(seconds == seconds.min(0), number, NO_LIMIT)
    winner_Y = fewest.argmin(0)
    parts = [each.of_layers(winner_Y == place) for place, each in enumerate(candidates)]
    layer = np.concatenate([part.layer for part in parts])
    by_layer = np.argsort(layer, kind="stable")  # each layer is of one part, and sorted there
    return Replicas(
        layer[by_layer],
        np.concatenate([part.expert for part in parts])[by_layer],
        np.concatenate([part.rank for part in parts])[by_layer],
    )
