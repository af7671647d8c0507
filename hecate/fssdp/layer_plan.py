"""Who holds what of one layer in a step, and what carries it there and home."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch.distributed as dist

from collectives.cost import predicted_s
from collectives.placement import Placement
from collectives.schedule import Change, Schedule, gather_schedule, reduce_schedule
from collectives.topology import Topology
from collectives.transports.protocol import Transport


@dataclass(frozen=True)
class Channel:
    """A process group for one kind of collective; ``pick`` says by which transport a change goes.

    All ranks pick alike.
    """

    group: dist.ProcessGroup
    pick: Callable[[Sequence[Change]], Transport]


@dataclass(frozen=True)
class Carrier:
    """A change, its transfers in order, and the transport that they were ordered for.

    ``alone_s``: seconds that the transfers should take by themselves, by the speed of the links.
    """

    change: Change
    schedule: Schedule
    transport: Transport
    alone_s: float

    @property
    def moved_bytes(self) -> int:
        """Over all ranks, relays between nodes among them."""
        return self.schedule.num_transfers * self.change.chunk_bytes


@dataclass(frozen=True)
class LayerPlan:
    """One layer in a step.

    ``held[r]``: the experts of rank r in the order of its rows, its own first. ``gather`` and
    ``reduce`` are ``None`` where nobody holds a copy. ``digest`` tells it from other plans.
    """

    placement: Placement
    held: tuple[tuple[int, ...], ...]
    gather: Carrier | None
    reduce: Carrier | None
    digest: int


class LayerPlanner:
    """Makes plans of layers for the two channels between the ranks of ``topology``."""

    def __init__(self, topology: Topology, gathers: Channel, reductions: Channel) -> None:
        self._topology, self._gathers, self._reductions = topology, gathers, reductions

    def plan(
        self,
        owners: Placement,
        placement: Placement,
        *,
        name: str,
        gather_bytes: int,
        reduce_bytes: int,
        earlier: LayerPlan | None = None,
    ) -> LayerPlan:
        """``owners`` and their copies in ``placement``, of the layer called ``name``.

        Raises ``ValueError`` for a placement that leaves out an owner, or is of other experts.
        ``gather_bytes``, ``reduce_bytes``: of one expert's weights and of its gradient.
        ``earlier``: a plan that this one adds copies to, which come after those it has.
        """
        held = []
        for rank in range(placement.world_size):
            there = earlier.held[rank] if earlier is not None else owners.chunks_on(rank)
            known = set(there)
            held.append(there + tuple(e for e in placement.chunks_on(rank) if e not in known))
        rest = Change(owners, placement, gather_bytes, name)
        if placement.holders == owners.holders:
            return LayerPlan(placement, tuple(held), None, None, rest.digest())
        reduction = Change(owners, placement, reduce_bytes, name)
        transport = self._reductions.pick([reduction])
        home = reduce_schedule([reduction], self._topology, hierarchical=transport.hierarchical)
        return LayerPlan(
            placement,
            tuple(held),
            self.gather_of(rest),
            self._carrier(reduction, home, transport),
            rest.digest(),
        )

    def gather_of(self, change: Change) -> Carrier:
        transport = self._gathers.pick([change])
        schedule = gather_schedule([change], self._topology, hierarchical=transport.hierarchical)
        return self._carrier(change, schedule, transport)

    def _carrier(self, change: Change, schedule: Schedule, transport: Transport) -> Carrier:
        return Carrier(change, schedule, transport, predicted_s(schedule, [change], self._topology))
