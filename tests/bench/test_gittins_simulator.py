"""Applications on the simulated engine take the time that arithmetic says, and all of them end."""

from __future__ import annotations

import numpy as np
import pytest

from hecate.bench.gittins.replica import EngineShape
from hecate.bench.gittins.simulator import Simulation
from hecate.bench.gittins.steps import StepTimes
from hecate.bench.gittins.workload import Job, Scale, jobs, poisson
from serving.scheduling.applications.book import Book
from serving.scheduling.applications.config import HistoryConfig
from serving.scheduling.applications.demand import Rates
from serving.scheduling.applications.order import Order
from serving.scheduling.applications.policies import POLICIES, Oracle, Policy
from serving.scheduling.applications.policies.config import OrderConfig
from serving.scheduling.applications.traces import Call, Kind, Trace, UnitRun

TIMES = StepTimes(base_s=0.1, row_s=0.01, context_s=0.0, prompt_s=0.001, pair_s=0.0)
RATES = Rates(0.001, 0.02, 0.2)
ROOMY = EngineShape(sequences=4, blocks=10_000)


def _simulation(policy: str, shape: EngineShape = ROOMY, **order: float) -> Simulation:
    book = Book(HistoryConfig(idle_s=1e9, hang_s=1e9), lambda: RATES)
    made: list[Simulation] = []

    def remaining_s(live: object) -> float:
        calls = [call for run in made[0].plan(live).runs for call in run.calls]  # type: ignore[arg-type]
        return sum(RATES.work_s(call) for call in calls) - live.attained_s  # type: ignore[attr-defined]

    chosen: Policy = Oracle(remaining_s) if policy == "oracle" else POLICIES[policy](book)
    config = OrderConfig.model_validate({"ageing_s": 0.0, "margin": 0.0} | order)
    made.append(Simulation(shape, TIMES, book, Order(chosen, config), tick_s=1.0))
    return made[0]


def _call(prompt: int, output: int) -> UnitRun:
    return UnitRun("ask", Kind.LLM, (Call(prompt, output),))


def test_an_instance_alone_takes_its_steps_and_its_tools() -> None:
    plan = Trace((_call(100, 5), UnitRun("tool", Kind.TOOL, seconds=2.0), _call(1500, 1)))
    simulation = _simulation("request_fcfs")
    (outcome,) = simulation.run([Job("any", "1", 3.0, plan)])
    # A prompt of 100 and four more tokens; the tool; a prompt in chunks of 1024 and 476.
    steps_s = (0.1 + 0.1) + 4 * (0.1 + 0.01) + (0.1 + 1.024) + (0.1 + 0.476)
    assert outcome.seconds == pytest.approx(2.0 + steps_s)
    assert simulation.busy_s == pytest.approx(steps_s)


def test_a_short_one_takes_the_place_of_a_long_one_where_the_order_has_it_so() -> None:
    one = EngineShape(sequences=1, blocks=10_000)
    work = [
        Job("long", "1", 0.0, Trace((_call(10, 200),))),
        Job("short", "2", 1.0, Trace((_call(10, 2),))),
    ]
    long_s, short_s = (each.seconds for each in _simulation("request_fcfs", one).run(work))
    simulation = _simulation("oracle", one)
    preempted_s, served_s = (each.seconds for each in simulation.run(work))
    assert served_s < 0.5 < short_s and simulation.replica.preemptions == 1
    assert preempted_s == pytest.approx(long_s + served_s, rel=0.02)


@pytest.mark.parametrize("policy", [*POLICIES, "oracle"])
def test_everything_ends_under_every_policy_and_memory_is_given_back(policy: str) -> None:
    rng = np.random.default_rng(0)
    drawn = jobs(rng, Scale(length=0.1, tool=1.0), 60)
    at_s = poisson(rng, len(drawn), 0.5)
    work = [
        Job(job.name, job.instance, when, job.plan) for job, when in zip(drawn, at_s, strict=True)
    ]
    tight = EngineShape(sequences=4, blocks=60)
    simulation = _simulation(policy, tight, ageing_s=60.0, margin=0.25, tenant_lead_s=10.0)
    outcomes = simulation.run(work)
    assert [outcome.job for outcome in outcomes] == work
    assert all(outcome.seconds > 0 for outcome in outcomes)
    tokens = sum(call.output_tokens for job in work for run in job.plan.runs for call in run.calls)
    assert simulation.busy_s >= tokens / 4 * (0.1 + 4 * 0.01)
    assert simulation.busy_s <= simulation.now_s
