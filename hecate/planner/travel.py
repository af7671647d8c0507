"""Copies of one layer on their way: which rank gives, what crosses, how long it shows. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from collectives.topology import Topology
from hecate.planner.costs import StepCosts

Copy = tuple[int, int]  # expert, rank


class Travel:
    """Copies that are added one after another, and what carries them.

    A node gets an expert only once; the first rank there that takes it passes it on. ``copies``:
    in the order in which they were added; ``taken_W``: how many each rank takes.
    """

    def __init__(self, owners_E: Sequence[int], topology: Topology, costs: StepCosts) -> None:
        self._owners_E, self._topology, self._costs = owners_E, topology, costs
        self.copies: list[Copy] = []
        self.held: set[Copy] = set()
        self.experts: set[int] = set()
        self.taken_W = [0] * topology.world_size
        self._sent_W = [0] * topology.world_size
        self._relays: dict[Copy, int] = {}
        self._in_N, self._out_N = Counter[int](), Counter[int]()
        self._busiest_rank = self._busiest_node = 0.0  # they only ever rise

    def crosses(self, expert: int, target: int) -> bool:
        """Whether a copy on ``target`` would be the first of ``expert`` on another node."""
        node = self._topology.node_of_rank
        home = node[self._owners_E[expert]]
        return home != node[target] and (expert, node[target]) not in self._relays

    def sent_from(self, rank: int) -> int:
        """Experts that leave the node of ``rank``."""
        return self._out_N[self._topology.node_of_rank[rank]]

    def send(self, expert: int, target: int) -> None:
        """One more copy, on ``target``."""
        node, owner = self._topology.node_of_rank, self._owners_E[expert]
        giver = owner
        if self.crosses(expert, target):
            self._relays[expert, node[target]] = target
            self._in_N[node[target]] += 1
            self._out_N[node[owner]] += 1
            for at in (node[target], node[owner]):
                through = self._costs.through(self._in_N[at], self._out_N[at])
                self._busiest_node = max(self._busiest_node, through)
        elif node[owner] != node[target]:
            giver = self._relays[expert, node[target]]
        self.copies.append((expert, target))
        self.held.add((expert, target))
        self.experts.add(expert)
        self.taken_W[target] += 1
        self._sent_W[giver] += 1
        for rank in (target, giver):
            through = self._costs.through(self.taken_W[rank], self._sent_W[rank])
            self._busiest_rank = max(self._busiest_rank, through)

    def exposed_s(self) -> float:
        """Seconds that the gather and the reduction of all copies add to a step."""
        return self._costs.exposed_s(self._busiest_rank, self._busiest_node, self._topology)
