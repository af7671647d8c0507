"""Whole simulations: what must hold whatever the constants are."""

from dataclasses import replace

import numpy as np
import pytest

from hecate.errors import ConfigError
from hecate.simulate.cluster import ClusterConfig
from hecate.simulate.files import load_cluster, load_workload
from hecate.simulate.loads import DriftingLoads, even_counts
from hecate.simulate.run import Sampling
from hecate.simulate.strategies import CEILING, STRATEGIES, strategy_named
from hecate.simulate.sweep import GroupPlanner, sweep
from hecate.simulate.workload import LoadsConfig, WorkloadConfig

SHORT = Sampling(steps=16, timed=(9, 15), layers=2)
ALL = tuple(STRATEGIES.values())


def small(**changes: object) -> WorkloadConfig:
    sizes: dict[str, object] = dict(
        name="small",
        hidden_size=256,
        layers=3,
        experts=16,
        top_k=2,
        expert_parameters=4 * 256 * 256,
        dense_parameters=4 * 256 * 256,
        attention_width=512,
        heads=4,
        sequence_tokens=512,
        sequences_per_device=4,
        loads=LoadsConfig(skew=0.8),
    )
    return WorkloadConfig.model_validate({**sizes, **changes})


def with_free_links(cluster: ClusterConfig) -> ClusterConfig:
    free = cluster.inside.model_copy(update={"bytes_per_s": 1e18, "latency_s": 0.0})
    return cluster.model_copy(update={"inside": free, "across": free})


def test_nothing_beats_balanced_routing_when_links_are_free() -> None:
    """With real links copies save exchange, which balanced routing alone does not."""
    cluster = with_free_links(load_cluster("paper-a"))
    exact = [s for s in ALL if s.name not in (CEILING, "fsdp")]
    rows = sweep(cluster, small(), [8, 16], exact, SHORT)
    assert all(row.ceiling_share <= 1 + 1e-6 for row in rows)
    ours = {row.outcome.strategy.name: row for row in rows}["fssdp"]
    assert ours.ceiling_share > 0.9 and ours.speedup > 1.15


def test_simulations_repeat_to_the_bit() -> None:
    def steps() -> list[float]:
        rows = sweep(load_cluster("paper-b"), small(), [16], ALL, SHORT)
        return [row.outcome.step_s for row in rows]

    assert steps() == steps()


def test_every_strategy_computes_every_slot() -> None:
    workload = small()
    planner = GroupPlanner(load_cluster("paper-a"), workload, SHORT)
    for strategy in ALL:
        for layers in planner.outcome(16, strategy).group.steps:
            for layer in layers:
                assert layer.slots_W.sum() == 16 * workload.slots


def test_faster_devices_and_links_are_never_slower() -> None:
    slow = load_cluster("paper-a")
    fast = slow.model_copy(update={"efficiency": 2.0})
    links = slow.across.model_copy(update={"bytes_per_s": 2 * slow.across.bytes_per_s})
    wide = slow.model_copy(update={"across": links})
    for name in ("expert_parallel", CEILING, "fsdp"):
        base, quicker, wider = (
            GroupPlanner(each, small(), SHORT).outcome(16, STRATEGIES[name]).step_s
            for each in (slow, fast, wide)
        )
        assert quicker < base and wider < base


def test_groups_of_expert_ranks_are_copies_of_one_another() -> None:
    workload = small(expert_ranks=8)
    planner = GroupPlanner(load_cluster("h100-pod"), workload, SHORT)
    one, many = (planner.outcome(n, STRATEGIES["expert_parallel"]) for n in (8, 4096))
    assert one.group is many.group
    assert many.step_s >= one.step_s
    assert many.tokens_per_s == pytest.approx(4096 * workload.tokens / many.step_s)


def test_rematerialization_keeps_one_layers_copies() -> None:
    planner = GroupPlanner(load_cluster("paper-a"), small(), SHORT)
    kept = planner.outcome(16, STRATEGIES["fssdp_paper"]).memory
    again = planner.outcome(16, STRATEGIES["fssdp_paper_rematerialized"]).memory
    assert kept.copied_parameter_bytes == pytest.approx(3 * again.copied_parameter_bytes, rel=0.4)
    assert kept.owned_bytes == again.owned_bytes


def test_loads_have_the_skew_that_was_asked_for() -> None:
    loads = DriftingLoads(LoadsConfig(skew=1.0, drift=0.0), 2, 4, 1, seed=1)
    expected = np.array([1, 1 / 2, 1 / 3, 1 / 4])
    for row in loads.step():
        assert np.sort(row)[::-1] == pytest.approx(expected / expected.sum())


def test_no_expert_gets_a_token_twice() -> None:
    loads = DriftingLoads(LoadsConfig(skew=4.0, drift=0.0), 1, 4, 2, seed=1)
    row = loads.step()[0]
    assert row.max() == pytest.approx(0.5)
    assert row.sum() == pytest.approx(1.0)


def test_even_counts_differ_by_at_most_one() -> None:
    counts_WE = even_counts(10, 4, 3)
    assert counts_WE.sum(1).tolist() == [10, 10, 10]
    assert counts_WE[0].tolist() == [3, 3, 2, 2]
    assert counts_WE[1].tolist() == [2, 2, 3, 3]
    assert counts_WE.sum(0).max() - counts_WE.sum(0).min() <= 1


def test_devices_that_do_not_fit() -> None:
    workload = small(expert_ranks=8)
    with pytest.raises(ConfigError, match="12 devices"):
        sweep(load_cluster("paper-a"), workload, [12], ALL[:1], SHORT)


@pytest.mark.parametrize(
    ("kind", "call"),
    [
        ("paper-a", lambda: load_cluster("paper-aa")),
        ("gpt-moe-s", lambda: load_workload("gpt-moe-x")),
        ("fssdp_paper", lambda: strategy_named("fssdp_papers")),
    ],
)
def test_unknown_names_get_the_nearest_one(kind: str, call: object) -> None:
    with pytest.raises(ConfigError, match=f"did you mean {kind}"):
        call()  # type: ignore[operator]


def test_scaling_one_strategy_leaves_the_others_alone() -> None:
    strategy = replace(STRATEGIES["fssdp_paper"], name="never", reshard_every=0)
    planner = GroupPlanner(load_cluster("paper-a"), small(), SHORT)
    assert (
        planner.outcome(8, strategy).group
        is not planner.outcome(8, STRATEGIES["fssdp_paper"]).group
    )
