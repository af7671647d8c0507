"""Training steps on the machine that was measured, as its own policies would run them. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from hecate.planner.load import Counts
from hecate.simulate.measured import Measurements, Sizes
from hecate.simulate.play import Group, Trace, even_owners, play
from hecate.simulate.step import StepPlan, StepTime, run_step
from hecate.simulate.strategies import CEILING, Strategy, build_policy
from hecate.simulate.timeline import Work

STATE_BYTES = 12  # of a parameter of an expert that moves: itself and two moments, all fp32
NOTHING = Work(0.0)


def simulate_steps(
    measured: Measurements,
    sizes: Sizes,
    strategy: Strategy,
    counts_SYE: Counts,
    timed: Sequence[int],
) -> tuple[StepTime, ...]:
    """The steps in ``timed``, in order, of a run from the first step of the trace.

    ``counts_SYE``: slots that each rank's tokens choose, the same on all ranks. Owners that change
    after a step move in it, as in a run.
    """
    costs = measured.costs(sizes)
    group = Group(
        build_policy(strategy, measured.reckoned, measured.topology),
        measured.links,
        costs,
        even_owners(sizes.experts, sizes.ranks, sizes.layers),
        sizes.expert_parameters * STATE_BYTES,
        even_choices=strategy.policy == CEILING,
    )
    trace = Trace.alike(counts_SYE, sizes.ranks, timed)
    played = play(group, trace, planned=range(len(counts_SYE)))
    times = []
    for step, each in zip(sorted(timed), played.steps, strict=True):
        moved_s = played.moved_s[step]
        plan = StepPlan(
            layers=each.layers,
            counts=Work(measured.counts_s),
            dense=NOTHING,  # in a layer's own time, since nothing hides it here
            dense_ends=NOTHING,
            between=Work(moved_s) if moved_s else None,
            owned_experts=sizes.experts * sizes.layers / sizes.ranks,
        )
        times.append(run_step(plan, costs, sizes.ranks, steal=measured.steal))
    return tuple(times)
