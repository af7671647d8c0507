"""The coming step's plan, made beside the optimizer and whatever else lies between two steps."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from collectives.placement import Placement
from hecate.planner.costs import StepCosts
from hecate.planner.load import LoadWindow
from hecate.planner.policies.protocol import Policy, Reckoning

Placements = tuple[Placement, ...]


@dataclass(frozen=True)
class _Asked:
    """What a plan depends on; ``loads`` as bytes, which compare at once."""

    step: int
    loads: bytes
    owners: Placements
    costs: StepCosts | None


class PlanAhead:
    """Asks ``policy`` for plans, ahead of their step where it allows that.

    A thread of its own plans from the loads of a step as soon as these are whole. Should loads,
    owners or costs be others when the next step begins, or another step come than was expected,
    that plan is dropped and made anew.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._thread = ThreadPoolExecutor(1, "plan") if policy.plans_ahead else None
        self._coming: tuple[_Asked, Future[Placements]] | None = None

    def start(self, step: int, loads: LoadWindow, owners: Placements) -> None:
        """Begin to plan ``step``."""
        if self._thread is not None:
            asked = self._question(step, loads, owners)
            self._coming = asked, self._thread.submit(self._policy.plan, step, loads, owners)

    def plan(self, step: int, loads: LoadWindow, owners: Placements) -> Placements:
        """What the policy plans; it raises what that raises."""
        coming, self._coming = self._coming, None
        if coming is not None:
            asked, planning = coming
            found = planning.result()  # also where it is dropped: one plan at a time
            if asked == self._question(step, loads, owners):
                return found
        return self._policy.plan(step, loads, owners)

    def _question(self, step: int, loads: LoadWindow, owners: Placements) -> _Asked:
        costs = self._policy.costs if isinstance(self._policy, Reckoning) else None
        return _Asked(step, loads.state().tobytes(), owners, costs)
