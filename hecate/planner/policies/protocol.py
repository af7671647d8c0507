"""What a policy decides about the experts of a model, step by step."""

from __future__ import annotations

from typing import Protocol

from collectives.placement import Placement
from hecate.planner.load import Counts, LoadWindow


class Policy(Protocol):
    """Says who owns, who copies and who computes; the same on all ranks, from the same numbers.

    ``plan``: what each layer's experts are copied to for the coming step, by the loads of the steps
    before. ``new_owners``: who owns each layer's experts from the next step on; the same tuple
    where nobody moves. ``route``: whose slots who computes, ``[W, E]`` counts to ``[W, E, W]``.
    """

    name: str

    def plan(
        self, step: int, loads: LoadWindow, owners: tuple[Placement, ...]
    ) -> tuple[Placement, ...]: ...

    def new_owners(
        self, step: int, loads: LoadWindow, owners: tuple[Placement, ...]
    ) -> tuple[Placement, ...]: ...

    def route(self, counts_WE: Counts, placement: Placement) -> Counts: ...
