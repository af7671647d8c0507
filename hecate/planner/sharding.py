"""Sharding: who owns each expert, so that cold experts do not pile up on a rank or a node. Pure.

Experts that will be copied everywhere anyway, the ``overlap_experts`` most loaded of each layer,
weigh nothing here. ``shard_by_load`` deals all layers out anew (2502.02581, Algorithm 2);
``swap_by_load`` starts from the present owners and swaps pairs, which moves less. Both weigh what
they gain against what they move: a moved expert takes its optimizer state along.

Owners are ``[Y, E]`` int32, -1 where a layer has no such expert.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from hecate.planner.load import Loads

Ids = npt.NDArray[np.int32]
Slots = npt.NDArray[np.float64]

ROUNDING = 1e-6  # slots; sums in another order differ by less


def shard_by_load(
    loads_YE: Loads,
    owners_YE: Ids,
    node_of_rank: Sequence[int],
    *,
    overlap_experts: int,
    move_slots: float = 0.0,
) -> Ids:
    """Owners by which each layer's cold load is even over nodes and ranks; memory stays equal.

    Every rank owns the same number of experts over all layers, give or take one, but any number of
    one layer's. ``move_slots``: what moving one expert costs, in slots of a step's busiest rank;
    where the busiest ranks of all layers do not get lighter by more than all moves cost, the
    result is ``owners_YE`` itself. Raises ``ValueError`` for shapes that do not fit.
    """
    _check(loads_YE, owners_YE, len(node_of_rank))
    cold_YE = _cold(loads_YE, owners_YE, overlap_experts)
    node_W = np.array(node_of_rank, dtype=np.int64)
    free_W = _capacities(owners_YE, len(node_W))
    new_YE = np.full_like(owners_YE, -1)
    heaviest = np.where(cold_YE, loads_YE, -1.0).max(1, initial=-1.0)
    for layer in np.lexsort((np.arange(len(heaviest)), -heaviest)).tolist():
        ranks = _deal(loads_YE[layer], cold_YE[layer], node_W, free_W)
        renamed = _renamed(ranks, owners_YE[layer], node_W.tolist())
        for expert, rank in ranks.items():
            new_YE[layer, expert] = renamed[rank]
    _fill(new_YE, owners_YE, free_W)
    gain = net_gain_slots(loads_YE, owners_YE, new_YE, overlap_experts, len(node_W), move_slots)
    return new_YE if gain > ROUNDING else owners_YE


def swap_by_load(
    loads_YE: Loads,
    owners_YE: Ids,
    world_size: int,
    *,
    overlap_experts: int = 0,
    move_slots: float = 0.0,
    most_swaps: int = 64,
) -> Ids:
    """Owners after swapping pairs of a layer's experts between its busiest rank and another one.

    Each rank keeps the number of experts that it owns of each layer. Of the swaps that were found
    those are made, in their order, after which a layer has gained most over what its moves cost;
    ``most_swaps`` bounds the search in each layer. ``owners_YE`` itself where none pays.
    """
    _check(loads_YE, owners_YE, world_size)
    cold_YE = _cold(loads_YE, owners_YE, overlap_experts)
    new_YE = owners_YE.copy()
    for layer, owner_E in enumerate(owners_YE):
        weights_E = np.where(cold_YE[layer], loads_YE[layer], 0.0)
        floor = float(np.where(owner_E >= 0, loads_YE[layer], 0.0).sum()) / world_size
        new_YE[layer] = _swapped(weights_E, owner_E, world_size, floor, move_slots, most_swaps)
    return new_YE if (new_YE != owners_YE).any() else owners_YE


def net_gain_slots(
    loads_YE: Loads,
    owners_YE: Ids,
    new_YE: Ids,
    overlap_experts: int,
    world_size: int,
    move_slots: float,
) -> float:
    """Slots by which the busiest ranks of all layers get lighter, less what the moves cost."""
    before = busiest_slots(loads_YE, owners_YE, overlap_experts, world_size)
    after = busiest_slots(loads_YE, new_YE, overlap_experts, world_size)
    return float((before - after).sum()) - move_slots * int((owners_YE != new_YE).sum())


def busiest_slots(loads_YE: Loads, owners_YE: Ids, overlap_experts: int, world_size: int) -> Slots:
    """Slots of each layer's busiest rank, ``[Y]``, where the hottest experts even out the others.

    The most cold load that one rank owns, but never less than the mean of all load.
    """
    cold_YE = _cold(loads_YE, owners_YE, overlap_experts)
    layer, expert = np.nonzero(cold_YE)
    place = layer * world_size + owners_YE[layer, expert]
    flat = np.bincount(place, loads_YE[layer, expert], minlength=len(loads_YE) * world_size)
    mean_Y = np.where(owners_YE >= 0, loads_YE, 0.0).sum(1) / world_size
    busiest: Slots = np.maximum(flat.reshape(-1, world_size).max(1), mean_Y)
    return busiest


def _check(loads_YE: Loads, owners_YE: Ids, world_size: int) -> None:
    if loads_YE.shape != owners_YE.shape or loads_YE.ndim != 2:
        raise ValueError(
            f"loads of shape {loads_YE.shape} and owners of shape {owners_YE.shape}; "
            "expected [layers, experts] of both"
        )
    if owners_YE.size and not (-1 <= owners_YE.min() and owners_YE.max() < world_size):
        raise ValueError(
            f"owners from {owners_YE.min()} to {owners_YE.max()}; expected ranks in "
            f"[0, {world_size}), or -1 where a layer has no such expert"
        )


def _cold(loads_YE: Loads, owners_YE: Ids, overlap_experts: int) -> npt.NDArray[np.bool_]:
    """All experts of each layer but the most loaded ones; of equals the lower id is the hotter."""
    exists_YE = owners_YE >= 0
    order_YE = np.argsort(np.where(exists_YE, -loads_YE, np.inf), axis=1, kind="stable")
    cold_YE = exists_YE.copy()
    np.put_along_axis(cold_YE, order_YE[:, : max(0, overlap_experts)], False, axis=1)
    return cold_YE


def _capacities(owners_YE: Ids, world_size: int) -> npt.NDArray[np.int64]:
    """How many experts each rank owns over all layers; the odd ones where most lie now."""
    owned_W = np.bincount(owners_YE[owners_YE >= 0], minlength=world_size)
    each, more = divmod(int(owned_W.sum()), world_size)
    capacity_W = np.full(world_size, each, dtype=np.int64)
    capacity_W[np.lexsort((np.arange(world_size), -owned_W))[:more]] += 1
    return capacity_W


def _deal(
    loads_E: Slots,
    cold_E: npt.NDArray[np.bool_],
    node_W: npt.NDArray[np.int64],
    free_W: npt.NDArray[np.int64],
) -> dict[int, int]:
    """One layer's cold experts by falling load: to the lightest node, there to the lightest rank.

    Of equals the one with fewer free slots; ``free_W`` is counted down.
    """
    size_N = np.bincount(node_W)
    ranks_of = [np.flatnonzero(node_W == node) for node in range(len(size_N))]
    free_N = np.bincount(node_W, free_W).astype(np.int64)
    load_W, load_N = np.zeros(len(node_W)), np.zeros(len(size_N))
    dealt: dict[int, int] = {}
    experts = np.flatnonzero(cold_E)
    for expert in experts[np.argsort(-loads_E[experts], kind="stable")].tolist():
        node = _lightest(load_N / size_N, free_N)
        ranks = ranks_of[node]
        rank = int(ranks[_lightest(load_W[ranks], free_W[ranks])])
        dealt[expert] = rank
        load_W[rank] += loads_E[expert]
        load_N[node] += loads_E[expert]
        free_W[rank] -= 1
        free_N[node] -= 1
    return dealt


def _lightest(loads: Slots, free: npt.NDArray[np.int64]) -> int:
    open_loads = np.where(free > 0, loads, np.inf)
    lightest = np.flatnonzero(open_loads == open_loads.min())
    return int(lightest[np.argmin(free[lightest])])


def _renamed(dealt: Mapping[int, int], old_E: Ids, nodes: list[int]) -> dict[int, int]:
    """Ranks to take the places of ranks, so that most experts stay and counts remain.

    Nodes of equal counts trade places first, then ranks of equal counts within them.
    """
    counts = Counter(dealt.values())
    ranks_of: defaultdict[int, list[int]] = defaultdict(list)
    for rank, node in enumerate(nodes):
        ranks_of[node].append(rank)
    kind_of_node = {node: tuple(counts[r] for r in ranks) for node, ranks in ranks_of.items()}
    pairs = [(rank, int(old_E[expert])) for expert, rank in dealt.items()]
    stays = Counter((nodes[new], nodes[old]) for new, old in pairs)
    renamed: dict[int, int] = {}
    for node, other in _matched(
        ranks_of, {n: tuple(sorted(k)) for n, k in kind_of_node.items()}, stays
    ):
        # ``other`` keeps its own counts, rank by rank
        kinds = {r: counts[r] for r in (*ranks_of[node], *ranks_of[other])}
        inside = Counter(pair for pair in pairs if pair[0] in set(ranks_of[node]))
        renamed |= dict(_matched(ranks_of[node], kinds, inside, ranks_of[other]))
    return renamed


def _matched(
    places: Iterable[int],
    kinds: Mapping[int, Hashable],
    stays: Mapping[tuple[int, int], int],
    others: Iterable[int] | None = None,
) -> list[tuple[int, int]]:
    """Pairs of one place and another of the same kind: those with most in common first."""
    left = list(places)
    right = list(left if others is None else others)
    matched: dict[int, int] = {}
    taken: set[int] = set()
    for (one, other), _ in sorted(stays.items(), key=lambda item: (-item[1], item[0])):
        if one in matched or other in taken or other not in right:
            continue
        if kinds[one] == kinds[other]:
            matched[one] = other
            taken.add(other)
    for one in left:
        if one not in matched:
            other = next(o for o in right if o not in taken and kinds[o] == kinds[one])
            matched[one] = other
            taken.add(other)
    return list(matched.items())


def _fill(new_YE: Ids, owners_YE: Ids, free_W: npt.NDArray[np.int64]) -> None:
    """The hottest experts take the slots that are left: their owner's, else where most are."""
    missing = list(zip(*np.nonzero((new_YE < 0) & (owners_YE >= 0)), strict=True))
    homeless = []
    for layer, expert in missing:
        rank = owners_YE[layer, expert]
        if free_W[rank] > 0:
            new_YE[layer, expert] = rank
            free_W[rank] -= 1
        else:
            homeless.append((layer, expert))
    for layer, expert in homeless:
        rank = int(np.argmax(free_W))
        new_YE[layer, expert] = rank
        free_W[rank] -= 1


def _swapped(
    weights_E: Slots,
    owner_E: Ids,
    world_size: int,
    floor: float,
    move_slots: float,
    most_swaps: int,
) -> Ids:
    """One layer's owners after the best of its swaps; ``floor``: the mean, which nothing beats."""
    exists = owner_E >= 0
    flat = np.bincount(owner_E[exists], weights_E[exists], minlength=world_size)
    load_W: Slots = flat.astype(np.float64)
    best_E, best_gain, now_E = owner_E, 0.0, owner_E.copy()
    busiest = max(floor, float(load_W.max()))
    for _ in range(most_swaps):
        high = int(np.argmax(load_W))
        if load_W[high] <= floor:
            break
        swap = _best_swap(weights_E, now_E, load_W, high)
        if swap is None:
            break
        sent, taken = swap
        low = int(now_E[taken])
        shift = float(weights_E[sent] - weights_E[taken])
        now_E[sent], now_E[taken] = low, high
        load_W[high] -= shift
        load_W[low] += shift
        gain = busiest - max(floor, float(load_W.max()))
        gain -= move_slots * int((now_E != owner_E).sum())
        if gain > best_gain + ROUNDING:
            best_E, best_gain = now_E.copy(), gain
    return best_E


def _best_swap(weights_E: Slots, now_E: Ids, load_W: Slots, high: int) -> tuple[int, int] | None:
    """The expert to send from ``high`` and the one to take for it, if that lowers both ends."""
    here = np.flatnonzero(now_E == high)
    there = np.flatnonzero((now_E >= 0) & (now_E != high))
    if not len(here) or not len(there):
        return None
    low_loads = load_W[now_E[there]]
    shift = weights_E[here][:, None] - weights_E[there][None]
    busier = np.maximum(load_W[high] - shift, low_loads + shift)
    place = int(np.argmin(busier))  # the first of equals: lower ids
    if busier.flat[place] >= load_W[high]:
        return None
    mine, theirs = divmod(place, len(there))
    return int(here[mine]), int(there[theirs])
