"""What collectives ask of the links: seconds of the busiest one of each class. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from collectives.placement import Placement
from collectives.topology import Topology
from hecate.planner.costs import transfer_copies
from hecate.planner.load import Counts
from hecate.planner.plan import Replicas
from hecate.simulate.timeline import Work

Transport = Literal["p2p", "auto"]


class Links(Protocol):
    """What joins the ranks of one group.

    ``exchange``: an uneven all-to-all of rows, ``rows_WW[source, target]``. ``copies``: a gather of
    chunks from owners to holders, none where nothing moves. ``reduction``: its mirror, which adds
    up holders' gradients at the owners.
    """

    def exchange(self, rows_WW: Counts, row_bytes: int, *, launches: int = 1) -> Work: ...

    def copies(self, owners: Placement, placement: Placement, chunk_bytes: int) -> Work | None: ...

    def reduction(
        self, owners: Placement, placement: Placement, chunk_bytes: int
    ) -> Work | None: ...


@dataclass(frozen=True)
class Network:
    """The links of one group of ranks.

    ``cards_per_node``: one rank sends across nodes through one of so many cards. ``copy_share``:
    a copied expert's seconds per byte over those of a token's, 1 where both use the same links.
    ``transport``: copies go point to point in two levels, or as broadcasts where these are faster.
    """

    topology: Topology
    cards_per_node: int = 1
    transport: Transport = "auto"
    copy_share: float = 1.0

    @cached_property
    def _nodes(self) -> npt.NDArray[np.int64]:
        return np.array(self.topology.node_of_rank, dtype=np.int64)

    @property
    def launch_s(self) -> float:
        """Before the first byte of a collective over all ranks."""
        return self.topology.across.latency_s

    def exchange(self, rows_WW: Counts, row_bytes: int, *, launches: int = 1) -> Work:
        """Uneven all-to-all: ``rows_WW[source, target]``; the way back takes the same.

        Bound by the busiest rank inside its node and, across nodes, by the busiest node or the
        busiest card, each in its busier direction.
        """
        node_W, topology = self._nodes, self.topology
        moving_WW = rows_WW * (1 - np.eye(len(rows_WW), dtype=np.int64))
        across_WW = np.where(node_W[:, None] != node_W[None], moving_WW, 0)
        inside_WW = moving_WW - across_WW
        across_s = 0.0
        if topology.num_nodes > 1:
            out_W, in_W = across_WW.sum(1), across_WW.sum(0)
            node = max(np.bincount(node_W, out_W).max(), np.bincount(node_W, in_W).max())
            rank = max(out_W.max(), in_W.max()) * self.cards_per_node
            across_s = max(node, rank) * row_bytes / topology.across.bandwidth_bytes_per_s
        inside = max(inside_WW.sum(1).max(), inside_WW.sum(0).max())
        inside_s = inside * row_bytes / topology.inside.bandwidth_bytes_per_s
        return Work(launches * self.launch_s, float(inside_s), float(across_s))

    def copies(self, owners: Placement, placement: Placement, chunk_bytes: int) -> Work | None:
        """A gather from owners to holders; none: nothing moves.

        Point to point a chunk enters a node once. A pipelined broadcast passes each travelling
        chunk once through every link, whoever owns it.
        """
        if owners.world_size == 1 or placement.holders == owners.holders:
            return None
        moved = [
            (0, chunk, rank)
            for chunk, (own, all_of_them) in enumerate(
                zip(owners.holders, placement.holders, strict=True)
            )
            if len(all_of_them) > 1
            for rank in all_of_them
            if rank != own[0]
        ]
        replicas = Replicas.of(moved)
        owners_YE = np.array([owners.owners], dtype=np.int32)
        rank_Y, node_Y = transfer_copies(replicas, owners_YE, self.topology)
        work = self._copy_work(int(rank_Y[0]), int(node_Y[0]), chunk_bytes)
        if self.transport == "p2p":
            return work
        travelling = len(set(replicas.expert.tolist()))
        wide = self._copy_work(travelling, travelling if node_Y[0] else 0, chunk_bytes)
        return min(work, wide, key=lambda each: each.alone_s)

    def reduction(self, owners: Placement, placement: Placement, chunk_bytes: int) -> Work | None:
        """What the gather would take: in and out change places."""
        return self.copies(owners, placement, chunk_bytes)

    def _copy_work(self, through_rank: int, through_node: int, chunk_bytes: int) -> Work:
        chunk_bytes_s = chunk_bytes * self.copy_share
        return Work(
            self.launch_s,
            through_rank * chunk_bytes_s / self.topology.inside.bandwidth_bytes_per_s,
            through_node * chunk_bytes_s / self.topology.across.bandwidth_bytes_per_s,
        )


def all_reduce(topology: Topology, num_bytes: float, *, ranks_per_card: float = 1.0) -> Work:
    """Sum of ``num_bytes`` on every rank: reduce-scatter and all-gather, node first.

    ``ranks_per_card``: how many ranks of a node send different bytes through the same links.
    """
    world_size, num_nodes = topology.world_size, topology.num_nodes
    inside = 2 * num_bytes * (world_size - 1) / world_size
    across = 2 * num_bytes * ranks_per_card * (num_nodes - 1) / num_nodes
    return Work(
        topology.across.latency_s if world_size > 1 else 0.0,
        inside / topology.inside.bandwidth_bytes_per_s,
        across / topology.across.bandwidth_bytes_per_s,
    )
