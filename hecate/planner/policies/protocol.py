"""What a policy decides about the experts of a model, step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from collectives.placement import Placement
from collectives.topology import Topology
from hecate.planner.costs import StepCosts
from hecate.planner.load import Counts, LoadWindow


class Policy(Protocol):
    """Says who owns, who copies and who computes; the same on all ranks, from the same numbers.

    ``plan``: what each layer's experts are copied to for the coming step, by the loads of the steps
    before. ``after_gate``: who holds a layer's experts once its counts ``[W, E]`` are known, which
    may add copies; the same object where it adds none. ``new_owners``: who owns each layer's
    experts from the next step on; the same tuple where nobody moves. ``route``: whose slots who
    computes, ``[W, E]`` counts to ``[W, E, W]``. ``state``: what its decisions depend on beside
    loads and owners, as JSON for a checkpoint; ``restore`` takes it up in a run of as many ranks.
    ``exact``: whether training under it computes what one process would. ``plans_ahead``: whether
    ``plan`` may be called from another thread before its step, and in vain, since it depends on
    nothing but its arguments and the costs. ``adjust_costs``: what it
    reckons with is now known better, between steps. A policy that inherits
    leaves to these methods what it does not do.
    """

    name: str
    exact: bool = True
    plans_ahead: bool = False

    def plan(
        self, step: int, loads: LoadWindow, owners: tuple[Placement, ...]
    ) -> tuple[Placement, ...]:
        return owners

    def after_gate(self, layer: int, counts_WE: Counts, placement: Placement) -> Placement:
        return placement

    def new_owners(
        self, step: int, loads: LoadWindow, owners: tuple[Placement, ...]
    ) -> tuple[Placement, ...]:
        return owners

    def route(self, counts_WE: Counts, placement: Placement) -> Counts: ...

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        return

    def adjust_costs(self, change: Callable[[StepCosts], StepCosts]) -> None:
        return


class Reckoning:
    """The part of a policy that decides by seconds and bytes."""

    costs: StepCosts
    topology: Topology

    def adjust_costs(self, change: Callable[[StepCosts], StepCosts]) -> None:
        self.costs = change(self.costs)
