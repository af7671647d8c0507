"""Copies of frozen experts: brought to ranks that lack them, kept between steps.

See Note [Where a frozen expert comes from] in keeping.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from collectives.placement import Placement
from collectives.schedule import Change
from collectives.sparse import sparse_all_gather
from hecate.fssdp.keeping import KeptCopies
from hecate.fssdp.layer_plan import Channel, LayerPlanner
from hecate.fssdp.layer_replicas import LayerReplicas
from hecate.fssdp.shards import ExpertShard


class FrozenCopies:
    """Those of all layers on this rank; nothing to do where experts train whole.

    ``moved_bytes``: over all ranks, in the current step.
    """

    def __init__(
        self,
        shards: Sequence[ExpertShard],
        planner: LayerPlanner,
        gathers: Channel,
        *,
        rank: int,
        world_size: int,
    ) -> None:
        self._planner, self._gathers, self._rank = planner, gathers, rank
        self._active = shards[0].frozen is not None
        self._kept = KeptCopies(
            [shard.frozen_bytes for shard in shards],
            [shard.gather_bytes + shard.reduce_bytes for shard in shards],
            world_size,
        )
        self.moved_bytes = 0

    def begin_step(self, layers: Sequence[LayerReplicas], budget_bytes: int) -> None:
        """Make room for what the layers' plans ask for, and drop what does not fit beside."""
        self.moved_bytes = 0
        if not self._active:
            return
        placements = [layer.plan.placement for layer in layers]
        wanted = self._kept.step(placements, [layer.owners for layer in layers], budget_bytes)
        for layer, placement in zip(layers, wanted, strict=True):
            self._want(layer, placement)

    def extend(self, layer: LayerReplicas, placement: Placement) -> None:
        """The same for copies that are added to one layer, which is about to run."""
        if self._active:
            index = layer.shard.layer.index
            self._want(layer, self._kept.use(index, placement, layer.owners))

    def set_owners(self, layer: LayerReplicas) -> None:
        """A layer has other owners."""
        if self._active:
            self._kept.owned(layer.shard.layer.index, layer.owners)
            self._want(layer, layer.owners)

    def fetch(self, layer: LayerReplicas) -> float:
        """Start to bring what ranks lack of a layer; seconds that this should take by itself."""
        frozen, wanted = layer.shard.frozen, layer.wanted
        if frozen is None or wanted is None:
            return 0.0
        change = Change(
            layer.owners, wanted, layer.shard.frozen_bytes, f"{layer.shard.layer.name} (frozen)"
        )
        carrier = self._planner.gather_of(change)
        layer.wanted = None
        layer.fetching = sparse_all_gather(
            [frozen.rows()],
            [carrier.change],
            schedule=carrier.schedule,
            transport=carrier.transport,
            group=self._gathers.group,
            rank=self._rank,
        )
        self.moved_bytes += carrier.moved_bytes
        return carrier.alone_s

    def _want(self, layer: LayerReplicas, placement: Placement) -> None:
        frozen, index = layer.shard.frozen, layer.shard.layer.index
        assert frozen is not None
        frozen.keep_only(expert for at, expert in self._kept.on(self._rank) if at == index)
        if layer.wanted is not None:
            placement = _together(layer.wanted, placement)
        layer.wanted = None if placement.holders == layer.owners.holders else placement


def _together(one: Placement, other: Placement) -> Placement:
    """The holders of both."""
    pairs = zip(one.holders, other.holders, strict=True)
    return Placement(tuple(tuple(sorted({*a, *b})) for a, b in pairs), one.world_size)
