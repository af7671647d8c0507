"""A policy over a trace: who holds what, and what moves."""

from __future__ import annotations

from dataclasses import fields

import numpy as np

from collectives.placement import Placement
from collectives.topology import Link, Topology
from hecate.planner.load import Counts, LoadWindow
from hecate.planner.policies import ExpertParallel
from hecate.simulate.costs import Costs
from hecate.simulate.network import Network
from hecate.simulate.play import Group, Trace, play

COSTS = Costs(**{field.name: 1 for field in fields(Costs)})
TOPOLOGY = Topology.single_node(2, Link(4.0, 0.0))
OWNERS = (Placement.from_owners([0, 0, 1], 2),)


class SwapsOnce(ExpertParallel):
    """Gives expert 0 to rank 1 after step 1, and remembers which steps it was asked to plan."""

    def __init__(self) -> None:
        self.planned: list[int] = []

    def plan(
        self, step: int, loads: LoadWindow, owners: tuple[Placement, ...]
    ) -> tuple[Placement, ...]:
        self.planned.append(step)
        return owners

    def new_owners(
        self, step: int, loads: LoadWindow, owners: tuple[Placement, ...]
    ) -> tuple[Placement, ...]:
        return (Placement.from_owners([1, 0, 1], 2),) if step == 1 else owners


def counts(*per_expert: int) -> Counts:
    return np.tile(np.array(per_expert, dtype=np.int64), (4, 1, 1))


def test_owners_change_between_steps_and_that_takes_time() -> None:
    policy = SwapsOnce()
    group = Group(policy, Network(TOPOLOGY), COSTS, OWNERS, expert_state_bytes=8)
    trace = Trace.alike(counts(5, 1, 2), 2, [1, 3])
    played = play(group, trace, planned={1, 2})
    assert policy.planned == [1, 2]
    assert played.moved_s == (0.0, 8 / 4, 0.0, 0.0)
    before, after = played.steps
    assert before.layers[0].slots_W.tolist() == [12, 4]
    assert before.layers[0].busy_W.tolist() == [2, 1]
    assert after.layers[0].slots_W.tolist() == [2, 14]
    assert (before.imbalance, after.imbalance) == (12 / 8, 14 / 8)
    assert not after.copies_YW.any()


def test_even_choices_stand_in_for_the_trace() -> None:
    group = Group(ExpertParallel(), Network(TOPOLOGY), COSTS, OWNERS, 8, even_choices=True)
    (step,) = play(group, Trace.alike(counts(6, 0, 0), 2, [0]), planned=()).steps
    assert step.layers[0].slots_W.tolist() == [8, 4]
