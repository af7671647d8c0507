"""Where copies go once it is known how many each expert gets (2502.02581, Algorithm 1). Pure.

Experts take their turns by falling load. Each copy goes to the node with the fewest copies of its
expert; of these to the one with the most free slots, then the least planned load, then the lowest
number; there to the rank with the most free slots, then the lowest number. Where all ranks share
one node, each rank counts as a node of its own.
"""

# Note [What is serial]
# ---------------------
# An expert's turn depends on the turns before it, through free slots and planned loads. Within a
# turn the rule above gives every node its first copy before any node gets a second one, so that a
# turn is a few *levels*: in each, every node that holds ``level`` copies takes one more, or, in the
# last, the best nodes of them do. A level is a handful of operations on [Y, N] arrays over all
# layers at once. Ranks are kept as [G, Y, N], a node's ranks first: the minimum over them is G-1
# passes over small integers, which is many times faster than reducing over a short last axis.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hecate.planner.plan import Ids, Replicas

Whole = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

UNIT_BITS = 30  # of a layer's load in whole units
LOAD_BITS = 18  # of a layer's planned load, coarser, so that a node's key fits 32 bits
Keys = npt.NDArray[Any]


@dataclass(frozen=True)
class Turns:
    """Experts in the order in which they are placed, ``[Y, t]`` each.

    ``copies``: how many each is to get beyond its owner. ``units``: the load that each of its
    holders is then reckoned with, of fewer than 2^``LOAD_BITS`` in a layer. ``resting_YE``: what
    each expert loads its owner with.
    """

    experts: Whole
    copies: Whole
    units: Whole
    resting_YE: Whole


class _Nodes:
    """The ranks of each node, side by side: N nodes of up to G ranks."""

    def __init__(self, node_of_rank: Sequence[int]) -> None:
        node_W = np.array(node_of_rank, dtype=np.int64)
        self.alone = int(node_W.max()) == 0
        if self.alone:
            node_W = np.arange(len(node_W))
        self.node_W = node_W
        self.size_N = np.bincount(node_W)
        self.num_nodes, self.width = len(self.size_N), int(self.size_N.max())
        by_node = np.argsort(node_W, kind="stable")
        first_N = np.cumsum(self.size_N) - self.size_N
        self.place_W = np.empty_like(node_W)
        self.place_W[by_node] = np.arange(len(node_W)) - np.repeat(first_N, self.size_N)
        self.rank_NG = np.full((self.num_nodes, self.width), -1, dtype=np.int64)
        self.rank_NG[node_W, self.place_W] = np.arange(len(node_W))


def spread(
    turns: Turns,
    owners_YE: Ids,
    node_of_rank: Sequence[int],
    *,
    slots_per_rank: int,
    send_budget: int,
) -> Replicas:
    """The copies of all layers.

    A rank takes at most ``slots_per_rank``, and none of an expert that it holds. Of the experts
    that a node owns, at most ``send_budget`` cross to another node, each counted once for each node
    that it enters. Copies that find no place are not made.
    """
    return _Spreading(turns, owners_YE, _Nodes(node_of_rank), slots_per_rank, send_budget).run()


class _Spreading:
    """All layers in one go: what is free, and what is planned, after each level."""

    def __init__(
        self, turns: Turns, owners_YE: Ids, nodes: _Nodes, slots_per_rank: int, send_budget: int
    ) -> None:
        self._turns, self._owners_YE, self._nodes = turns, owners_YE, nodes
        num_layers, num_nodes = len(owners_YE), nodes.num_nodes
        self._rows = np.arange(num_layers)
        # A rank's key is (slots taken, place in its node): the least one is next in its node.
        self._place_bits = (nodes.width - 1).bit_length()
        self._full = slots_per_rank << self._place_bits
        self._rank_type = _smallest_type((slots_per_rank + 1).bit_length() + self._place_bits)
        never = np.iinfo(self._rank_type).max
        keys_GN = np.where(nodes.rank_NG.T >= 0, np.arange(nodes.width)[:, None], never)
        shape = (nodes.width, num_layers, num_nodes)
        self._rank_keys = np.broadcast_to(keys_GN[:, None], shape).astype(self._rank_type)
        self._one_more = np.empty_like(self._rank_keys)  # buffers, since fresh pages cost more
        self._given = np.empty(shape, dtype=np.bool_)  # than what is done with them
        # A node's key is (slots taken of those of the largest node, planned load, number).
        id_bits = (num_nodes - 1).bit_length()
        self._load_shift, self._slot_shift = id_bits, id_bits + LOAD_BITS
        slot_bits = (nodes.width * slots_per_rank + 1).bit_length()
        self._node_type = _smallest_type(max(slot_bits + self._slot_shift, 17))
        home_YE = nodes.node_W[owners_YE] + self._rows[:, None] * num_nodes
        planned = np.bincount(
            home_YE.ravel(), turns.resting_YE.ravel(), minlength=num_layers * num_nodes
        )  # sums of small whole numbers: exact
        planned_YN = planned.astype(np.int64).reshape(num_layers, num_nodes)
        lacking_N = (nodes.width - nodes.size_N) * slots_per_rank
        keys_YN = (lacking_N << self._slot_shift) + (planned_YN << self._load_shift)
        self._node_keys = (keys_YN + np.arange(num_nodes)).astype(self._node_type)
        self._left_to_send = np.full((num_layers, num_nodes), send_budget, dtype=np.int64)
        # A copy's code is (layer, expert, rank).
        self._rank_bits = (len(nodes.node_W) - 1).bit_length()
        self._expert_bits = (owners_YE.shape[1] - 1).bit_length()
        bits = self._rank_bits + self._expert_bits + (num_layers - 1).bit_length()
        self._code_type = np.int32 if bits < 31 else np.int64
        self._slot_of_node = np.tile(np.arange(num_nodes) * nodes.width, num_layers)
        self._rank_of_slot = nodes.rank_NG.ravel().astype(self._code_type)
        most = max(1, int(turns.copies.sum(1).max()))
        none = np.iinfo(self._code_type).max
        self._codes_YC = np.full((num_layers, most), none, dtype=self._code_type)
        self._end_Y = self._rows * most  # of each layer's codes, in the flat table

    def run(self) -> Replicas:
        for turn in range(self._turns.experts.shape[1]):
            if self._turns.copies[:, turn].any():
                self._take_turn(turn)
        self._codes_YC.sort(axis=1)  # short rows sort far faster than one long one
        codes = self._codes_YC[self._codes_YC != np.iinfo(self._code_type).max]
        rank_mask, expert_mask = (1 << self._rank_bits) - 1, (1 << self._expert_bits) - 1
        return Replicas(
            (codes >> (self._rank_bits + self._expert_bits)).astype(np.int32),
            ((codes >> self._rank_bits) & expert_mask).astype(np.int32),
            (codes & rank_mask).astype(np.int32),
        )

    def _take_turn(self, turn: int) -> None:
        experts_Y, left_Y = self._turns.experts[:, turn], self._turns.copies[:, turn].copy()
        owners_Y = self._owners_YE[self._rows, experts_Y]
        homes_Y = self._nodes.node_W[owners_Y]
        # One more slot taken, and the expert's share of load planned.
        step_Y = (1 << self._slot_shift) + (self._turns.units[:, turn] << self._load_shift)
        step_Y = step_Y.astype(self._node_type)
        code_Y = ((self._rows << self._expert_bits) + experts_Y) << self._rank_bits
        code_Y = code_Y.astype(self._code_type)
        next_keys = self._rank_keys.min(0)
        eligible = next_keys < self._full
        eligible[self._rows, homes_Y] = False
        open_Y = eligible.sum(1)
        number_Y = np.minimum(left_Y, open_Y)
        if not self._nodes.alone:
            number_Y = np.minimum(number_Y, self._left_to_send[self._rows, homes_Y])
            self._left_to_send[self._rows, homes_Y] -= number_Y
        chosen = self._best(eligible, open_Y, number_Y)
        self._give(self._rank_keys, next_keys, chosen, step_Y)
        self._write_down(chosen, next_keys, number_Y, code_Y)
        left_Y -= number_Y
        held = chosen
        if self._nodes.width == 1 or not left_Y.any():
            return
        # From here on some node takes a second copy: those who hold one are passed over.
        given, never = self._given.copy(), np.iinfo(self._rank_type).max
        held[self._rows, homes_Y] = True
        given[self._nodes.place_W[owners_Y], self._rows, homes_Y] = True
        while left_Y.any() and held.any():
            keys = np.where(given, self._rank_type(never), self._rank_keys)
            next_keys = keys.min(0)
            eligible = held & (next_keys < self._full)
            open_Y = eligible.sum(1)
            number_Y = np.minimum(left_Y, open_Y)
            held = self._best(eligible, open_Y, number_Y)
            self._give(keys, next_keys, held, step_Y)
            given |= self._given
            self._write_down(held, next_keys, number_Y, code_Y)
            left_Y -= number_Y

    def _best(self, eligible: Mask, open_Y: Whole, number_Y: Whole) -> Mask:
        """The first ``number_Y`` of each layer's eligible nodes, by their keys."""
        if (number_Y == open_Y).all():
            return eligible
        none = np.iinfo(self._node_type).max
        keys = np.where(eligible, self._node_keys, self._node_type(none))
        num_nodes = keys.shape[1]
        first_out_Y = np.sort(keys, axis=1)[self._rows, np.minimum(number_Y, num_nodes - 1)]
        first_out_Y[number_Y == num_nodes] = none
        chosen: Mask = keys < first_out_Y[:, None]
        return chosen

    def _give(self, keys: Keys, next_keys: Keys, chosen: Mask, step_Y: Whole) -> None:
        """Let each chosen node's next rank take one copy; ``_given`` says which ranks these are."""
        np.equal(keys, next_keys, out=self._given)
        np.logical_and(self._given, chosen, out=self._given)
        a_slot = self._rank_type(1 << self._place_bits)
        np.multiply(self._given.view(np.uint8), a_slot, out=self._one_more)
        self._rank_keys += self._one_more
        self._node_keys += np.where(chosen, step_Y[:, None], self._node_type(0))

    def _write_down(
        self,
        chosen: Mask,
        next_keys: Keys,
        number_Y: Whole,
        code_Y: Whole,
    ) -> None:
        spots = np.flatnonzero(chosen)
        places = next_keys.ravel()[spots] & ((1 << self._place_bits) - 1)
        slots = self._slot_of_node[spots] + places
        first_Y = np.cumsum(number_Y) - number_Y
        at = np.repeat(self._end_Y - first_Y, number_Y) + np.arange(len(slots))
        self._codes_YC.ravel()[at] = self._rank_of_slot[slots] + np.repeat(code_Y, number_Y)
        self._end_Y += number_Y


def _smallest_type(bits: int) -> type[np.unsignedinteger]:
    """Of the types that sort fast, the smallest that holds so many bits and one value more."""
    if bits > 63:
        raise ValueError(f"keys of {bits} bits; expected at most 63: fewer ranks, or fewer slots")
    return next(
        t
        for limit, t in ((7, np.uint8), (15, np.uint16), (31, np.uint32), (63, np.uint64))
        if bits <= limit
    )
