"""Quotas: which rank computes whose slots, once it is known who holds what. Pure.

``even`` is the paper's rule (2502.02581, section 4.4): a slot stays on its rank where that holds
the expert, else in its node, else it crosses; among the nearest holders slots are dealt alike. A
rank with many hot slots of its own is left with all of them. ``weighted`` starts from there and
lowers the busiest rank as far as the placement allows; see Note [Weighted quotas].
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from collectives.placement import Placement
from hecate.planner.load import Counts

Rule = Literal["even", "weighted"]

# Note [Weighted quotas]
# ----------------------
# A flow of least cost. Slots of one source whose experts have the same holders are alike, so these
# are moved and not single experts. A slot costs nothing on its own rank, OFF_RANK elsewhere, and 1
# more across nodes: fewest slots off their rank first, then fewest across nodes. Dealing to the
# nearest holders is the cheapest flow of all; slots then go from ranks above the limit to ranks
# below it along the cheapest path, through ranks in between that take as much as they give, which
# keeps the flow the cheapest for the loads it has. The limit is the largest mean over any ranks of
# the slots that only these can take (Hall's condition), tried one by one for few ranks. For many it
# is found on the way: it begins with the mean of all ranks, and where no path is left, what the
# ranks that were reached hold can go nowhere else, their mean is the next limit, and all starts
# over.
_NEVER = np.iinfo(np.int64).max
_FEW_RANKS = 10


def route(
    counts_WE: Counts, placement: Placement, node_of_rank: Sequence[int], *, rule: Rule
) -> Counts:
    """Slots of each source and expert for each computing rank: ``[W, E]`` to ``[W, E, W]``, int64.

    Sums over the last axis are the counts; ranks that do not hold an expert get none of it. The
    same on all ranks for the same arguments. ``weighted``: the busiest rank computes as few slots
    as the placement allows, then as many slots as possible stay on their own rank, then in their
    node. Raises ``ValueError`` for counts of another shape than the placement's.
    """
    if counts_WE.shape != (placement.world_size, placement.num_chunks):
        raise ValueError(
            f"counts of shape {counts_WE.shape}; expected [ranks, experts] = "
            f"[{placement.world_size}, {placement.num_chunks}], those of the placement"
        )
    if len(node_of_rank) != placement.world_size:
        raise ValueError(
            f"nodes of {len(node_of_rank)} ranks; expected those of {placement.world_size}"
        )
    if placement.is_partition:
        experts, owners = _owners(placement)
        quotas_WEW = np.zeros((*counts_WE.shape, placement.world_size), dtype=np.int64)
        quotas_WEW[:, experts, owners] = counts_WE
        return quotas_WEW
    nearest = _nearest(placement, tuple(node_of_rank))
    each_WE, more_WE = np.divmod(counts_WE, nearest.num_holders_WE)
    quotas_WEW = nearest.deals_WEW * each_WE[:, :, None]
    quotas_WEW += nearest.turn_WEW < more_WE[:, :, None]
    if rule == "weighted":
        _rebalance(quotas_WEW, _sharing(placement), tuple(node_of_rank))
    return quotas_WEW


@dataclass(frozen=True)
class _Nearest:
    """The holders of each expert that are nearest to each source.

    ``deals_WEW``: 1 for them and 0 for all others. ``turn_WEW``: whose turn it is when a remainder
    is dealt, 0 first; another holder for each source and expert, never for those farther away.
    """

    num_holders_WE: Counts
    deals_WEW: Counts
    turn_WEW: Counts


@dataclass(frozen=True)
class _Sharing:
    """Experts with several holders, those with the same holders in one group.

    ``experts`` by group, each group's from its entry of ``starts`` on. ``holders_GW``: 1 or 0;
    ``subset_G``: the same as bits, of few ranks. ``between[a][b]``: the groups that both hold.
    """

    experts: Counts
    starts: Counts
    group_experts: tuple[tuple[int, ...], ...]
    group_holders: tuple[tuple[int, ...], ...]
    holders_GW: npt.NDArray[np.float64]
    subset_G: Counts
    between: tuple[tuple[tuple[int, ...], ...], ...]


@lru_cache(maxsize=512)
def _owners(placement: Placement) -> tuple[Counts, Counts]:
    return np.arange(placement.num_chunks), np.array(placement.owners, dtype=np.int64)


@lru_cache(maxsize=512)
def _nearest(placement: Placement, node_of_rank: tuple[int, ...]) -> _Nearest:
    shape = (placement.world_size, placement.num_chunks)
    num_holders_WE = np.ones(shape, dtype=np.int64)
    deals_WEW = np.zeros((*shape, placement.world_size), dtype=np.int64)
    turn_WEW = np.full(deals_WEW.shape, _NEVER, dtype=np.int64)
    for source, (expert, holders) in itertools.product(
        range(placement.world_size), enumerate(placement.holders)
    ):
        near = [r for r in holders if node_of_rank[r] == node_of_rank[source]] or list(holders)
        near = [source] if source in holders else near
        num_holders_WE[source, expert] = len(near)
        for place, rank in enumerate(near):
            deals_WEW[source, expert, rank] = 1
            turn_WEW[source, expert, rank] = (place - source - expert) % len(near)
    return _Nearest(num_holders_WE, deals_WEW, turn_WEW)


@lru_cache(maxsize=512)
def _sharing(placement: Placement) -> _Sharing:
    groups: dict[tuple[int, ...], list[int]] = {}
    for expert, holders in enumerate(placement.holders):
        if len(holders) > 1:
            groups.setdefault(holders, []).append(expert)
    holders_GW = np.zeros((len(groups), placement.world_size))
    ranks = range(placement.world_size)
    between: list[list[list[int]]] = [[[] for _ in ranks] for _ in ranks]
    for group, holders in enumerate(groups):
        holders_GW[group, list(holders)] = 1
        for one, other in itertools.permutations(holders, 2):
            between[one][other].append(group)
    sizes = [len(experts) for experts in groups.values()]
    few = placement.world_size <= _FEW_RANKS  # more have more subsets than fit into a number
    return _Sharing(
        experts=np.array(list(itertools.chain(*groups.values())), dtype=np.int64),
        starts=np.array([0, *itertools.accumulate(sizes[:-1])], dtype=np.int64),
        group_experts=tuple(tuple(experts) for experts in groups.values()),
        group_holders=tuple(groups),
        holders_GW=holders_GW,
        subset_G=np.array([sum(1 << r for r in ranks) if few else 0 for ranks in groups], np.int64),
        between=tuple(tuple(tuple(groups) for groups in row) for row in between),
    )


@dataclass(frozen=True)
class _Steps:
    """What a slot's way from rank a to rank b adds to its cost, by where it comes from.

    ``kind[a][b][source]`` is a number from 0, the slots that gain most, up; ``sources[a][b][kind]``
    the inverse; ``cost[a][b][kind]``. ``kind_WWWk`` is ``kind`` as ones and zeros.
    """

    kind: tuple[tuple[tuple[int, ...], ...], ...]
    sources: tuple[tuple[tuple[tuple[int, ...], ...], ...], ...]
    cost: tuple[tuple[tuple[int, ...], ...], ...]
    kind_WWWk: npt.NDArray[np.float64]


@lru_cache(maxsize=64)
def _steps(node_of_rank: tuple[int, ...]) -> _Steps:
    ranks = range(len(node_of_rank))
    off_rank = 2 * len(ranks) + 2  # no path of steps of cost 1 adds up to it

    def cost(source: int, rank: int) -> int:
        across = node_of_rank[source] != node_of_rank[rank]
        return 0 if source == rank else off_rank + across

    added = [[[cost(s, b) - cost(s, a) for s in ranks] for b in ranks] for a in ranks]
    costs = [[sorted(set(added[a][b])) for b in ranks] for a in ranks]
    kind = [[[costs[a][b].index(x) for x in added[a][b]] for b in ranks] for a in ranks]
    kinds = range(max(len(found) for row in costs for found in row))
    return _Steps(
        kind=tuple(tuple(map(tuple, row)) for row in kind),
        sources=tuple(
            tuple(
                tuple(tuple(s for s in ranks if kind[a][b][s] == k) for k in kinds) for b in ranks
            )
            for a in ranks
        ),
        cost=tuple(tuple(map(tuple, row)) for row in costs),
        kind_WWWk=(np.array(kind)[..., None] == np.array(kinds)).astype(np.float64),
    )


@lru_cache(maxsize=16)
def _subset_sizes(world_size: int) -> Counts:
    """How many ranks each subset has, written as bits; 1 for the empty one, which holds nothing."""
    return np.array([max(1, subset.bit_count()) for subset in range(1 << world_size)])


def _rebalance(quotas_WEW: Counts, sharing: _Sharing, node_of_rank: tuple[int, ...]) -> None:
    """Lower the busiest rank as far as it goes, in place."""
    loads = quotas_WEW.sum((0, 1)).tolist()
    mean = -(-sum(loads) // len(loads))
    if max(loads) <= mean:
        return
    slots_WGW = np.add.reduceat(quotas_WEW[:, sharing.experts], sharing.starts, axis=1)
    limit = _first_limit(loads, slots_WGW, sharing)
    while max(loads) > limit:
        flow = _Flow(list(loads), slots_WGW, sharing, _steps(node_of_rank))
        limit, tried = flow.run(limit), limit
        if limit == tried:
            flow.write(quotas_WEW)
            return


def _first_limit(loads: list[int], slots_WGW: Counts, sharing: _Sharing) -> int:
    """What the busiest rank computes at least; for few ranks no less than it must."""
    alone = np.subtract(loads, slots_WGW.sum((0, 1)))
    world_size = len(loads)
    if world_size > _FEW_RANKS:
        return max(-(-sum(loads) // world_size), int(alone.max()))
    confined = np.zeros(1 << world_size, dtype=np.int64)
    confined[sharing.subset_G] = slots_WGW.sum((0, 2))
    confined[1 << np.arange(world_size)] = alone
    for rank in range(world_size):
        halves = confined.reshape(-1, 2, 1 << rank)
        halves[:, 1] += halves[:, 0]
    return -int((-confined // _subset_sizes(world_size)).min())


class _Flow:
    """Slots on their way from ranks above a limit to ranks below it."""

    def __init__(
        self, loads: list[int], slots_WGW: Counts, sharing: _Sharing, steps: _Steps
    ) -> None:
        self._loads, self._sharing, self._steps = loads, sharing, steps
        self._ranks = range(len(loads))
        # by the rank that computes them: _slots[a][s][g]; what may go on to b: _movable[a][b][kind]
        slots_WWG = slots_WGW.transpose(2, 0, 1)
        self._slots: list[list[list[int]]] = slots_WWG.tolist()
        movable_WWW = np.matmul(slots_WWG.astype(np.float64), sharing.holders_GW).transpose(0, 2, 1)
        movable_WWk = np.matmul(movable_WWW[:, :, None], steps.kind_WWWk)[:, :, 0]
        self._movable: list[list[list[int]]] = movable_WWk.astype(np.int64).tolist()
        self._ways = [self._ways_from(a) for a in self._ranks]
        self._moves: list[tuple[int, int, int, int, int]] = []

    def run(self, limit: int) -> int:
        """Bring all ranks to ``limit``; else a higher one that no flow gets below."""
        loads = self._loads
        while True:
            cost: dict[int, int] = {r: 0 for r in self._ranks if loads[r] > limit}
            if not cost:
                return limit
            before = self._search(cost)
            ends = [(cost[r], loads[r], r) for r in cost if loads[r] < limit]
            if not ends:
                return -(-sum(loads[r] for r in cost) // len(cost))
            ends.sort()
            touched: set[int] = set()
            for end_cost, _, end in ends:
                if end_cost == ends[0][0]:  # each is a cheapest path still
                    touched.update(self._shift(end, before, limit))
            for rank in touched:
                self._ways[rank] = self._ways_from(rank)

    def _search(self, cost: dict[int, int]) -> dict[int, tuple[int, int]]:
        """Cheapest paths from the ranks in ``cost``, which takes in all that are reached.

        For each the rank before it and the kind of slots that come from there.
        """
        before: dict[int, tuple[int, int]] = {}
        ahead = list(cost)
        for a in ahead:  # a rank is appended again when a cheaper way to it is found
            here = cost[a]
            for b, added, kind in self._ways[a]:
                if b not in cost or here + added < cost[b]:
                    cost[b] = here + added
                    before[b] = (a, kind)
                    ahead.append(b)
        return before

    def _ways_from(self, a: int) -> list[tuple[int, int, int]]:
        """The ranks that can take slots from ``a``: (rank, least added cost, kind of slots)."""
        found = []
        movable, costs = self._movable[a], self._steps.cost[a]
        for b, groups in enumerate(self._sharing.between[a]):
            if groups:
                for kind, slots in enumerate(movable[b]):
                    if slots:
                        found.append((b, costs[b][kind], kind))
                        break
        return found

    def _shift(self, end: int, before: dict[int, tuple[int, int]], limit: int) -> list[int]:
        """Move what can go along the path to ``end``; the ranks on it."""
        amount = limit - self._loads[end]
        hops, b = [], end
        while b in before:
            a, kind = before[b]
            amount = min(amount, self._movable[a][b][kind])
            hops.append((a, b, kind))
            b = a
        amount = min(amount, self._loads[b] - limit)
        if amount <= 0:
            return []
        for a, b, kind in hops:
            self._move(a, b, kind, amount)
        self._loads[hops[-1][0]] -= amount
        self._loads[end] += amount
        return [end, *(a for a, _, _ in hops)]

    def _move(self, a: int, b: int, kind: int, amount: int) -> None:
        """Move ``amount`` slots of one kind, those of lower sources and groups first."""
        kinds_from_a, kinds_from_b = self._steps.kind[a], self._steps.kind[b]
        movable_a, movable_b = self._movable[a], self._movable[b]
        for source in self._steps.sources[a][b][kind]:
            given, taken = self._slots[a][source], self._slots[b][source]
            for group in self._sharing.between[a][b]:
                part = min(amount, given[group])
                if part:
                    given[group] -= part
                    taken[group] += part
                    for rank in self._sharing.group_holders[group]:
                        movable_a[rank][kinds_from_a[rank][source]] -= part
                        movable_b[rank][kinds_from_b[rank][source]] += part
                    self._moves.append((group, source, a, b, part))
                    amount -= part
                    if not amount:
                        return

    def write(self, quotas_WEW: Counts) -> None:
        """Do to each group's experts, in their order, what was done to the group."""
        for group, source, a, b, amount in self._moves:
            for expert in self._sharing.group_experts[group]:
                part = min(amount, int(quotas_WEW[source, expert, a]))
                if part:
                    quotas_WEW[source, expert, a] -= part
                    quotas_WEW[source, expert, b] += part
                    amount -= part
                    if not amount:
                        break
