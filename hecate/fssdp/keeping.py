"""Which ranks keep a copy of which frozen expert between steps. Pure.

Note [Where a frozen expert comes from]
---------------------------------------
A sparse all-gather (2502.02581, section 3.1) copies weights anew in each step, since the optimizer
changed them. What is frozen never changes: a copy that a rank got once stays right for ever. So an
expert with adapters travels as two chunks. The adapters go out in each step to the holders of
its placement, and their gradients come home, as FSSDP has it for whole experts. The frozen part
goes to a rank only when the placement asks for a copy that the rank does not have, and stays there
afterwards, placed or not. Nothing of it is ever reduced, and no optimizer state belongs to it.

Copies stay within the memory that experts.copies_mib gives. Where it runs short, those that the
step does not use go, the longest unused first. Every rank works this out for all ranks, from
the placements alone, so that all launch the same transfers.
"""

from __future__ import annotations

from collections.abc import Sequence

from collectives.placement import Placement

Copy = tuple[int, int]


class KeptCopies:
    """The copies of frozen experts on all ranks, as (layer, expert) of each rank.

    ``frozen_bytes``, ``used_bytes``: of one expert of each layer; what a copy takes, and what it
    takes beside when a step uses it (its adapters and their gradients).
    """

    def __init__(
        self, frozen_bytes: Sequence[int], used_bytes: Sequence[int], world_size: int
    ) -> None:
        self._frozen_bytes, self._used_bytes = tuple(frozen_bytes), tuple(used_bytes)
        self._last_use: tuple[dict[Copy, int], ...] = tuple({} for _ in range(world_size))
        self._step = 0

    def on(self, rank: int) -> frozenset[Copy]:
        """What ``rank`` keeps now."""
        return frozenset(self._last_use[rank])

    def step(
        self, placements: Sequence[Placement], owners: Sequence[Placement], budget_bytes: int
    ) -> tuple[Placement, ...]:
        """Take up the placements of a step; each layer's owners and the ranks that need a copy.

        Afterwards every copy of the step is kept, and of others as many as ``budget_bytes`` of a
        rank allow.
        """
        self._step += 1
        needed = tuple(
            self.use(layer, placement, own)
            for layer, (placement, own) in enumerate(zip(placements, owners, strict=True))
        )
        for last_use in self._last_use:
            self._shrink(last_use, budget_bytes)
        return needed

    def use(self, layer: int, placement: Placement, owners: Placement) -> Placement:
        """Take up the copies of one layer; its owners and the ranks that need one now."""
        holders = []
        for expert, (ranks, own) in enumerate(zip(placement.holders, owners.holders, strict=True)):
            new = set(own)
            for rank in ranks:
                if rank in own:
                    continue
                if (layer, expert) not in self._last_use[rank]:
                    new.add(rank)
                self._last_use[rank][layer, expert] = self._step
            holders.append(tuple(sorted(new)))
        return Placement(tuple(holders), owners.world_size)

    def owned(self, layer: int, owners: Placement) -> None:
        """Other owners of a layer: what a rank owns it does not keep as a copy beside."""
        for expert, (owner,) in enumerate(owners.holders):
            self._last_use[owner].pop((layer, expert), None)

    def _shrink(self, last_use: dict[Copy, int], budget_bytes: int) -> None:
        taken = sum(self._frozen_bytes[layer] for layer, _ in last_use)
        taken += sum(self._used_bytes[c[0]] for c, used in last_use.items() if used == self._step)
        for copy, used in sorted(last_use.items(), key=lambda item: (item[1], item[0])):
            if taken <= budget_bytes or used == self._step:
                return
            del last_use[copy]
            taken -= self._frozen_bytes[copy[0]]
