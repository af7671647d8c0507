"""Shipped descriptions load, and their models have as many parameters as published."""

import pytest

from hecate.errors import ConfigError
from hecate.simulate.files import SHIPPED, load_cluster, load_workload

PUBLISHED = {
    "gpt-moe-s": 1.84e9,
    "gpt-moe-l": 7.36e9,
    "bert-moe": 3.27e9,
    "bert-moe-deep": 6.54e9,
    "mixtral-8x7b": 46_702_792_704,
    "qwen3-235b-a22b": 235_093_634_560,
    "deepseek-v3": 671_026_419_200,
}


def names(kind: str) -> list[str]:
    return sorted(file.stem for file in (SHIPPED / kind).glob("*.yaml"))


def test_every_file_is_here() -> None:
    assert names("workload") == sorted(PUBLISHED)
    assert names("cluster") == ["h100-pod", "nvl72", "paper-a", "paper-b"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters(name: str) -> None:
    workload = load_workload(name)
    assert workload.name == name
    experts = workload.layers * workload.num_experts(32) * workload.expert_parameters
    total = experts + workload.whole_dense_parameters
    assert total == pytest.approx(PUBLISHED[name], rel=0.01)


@pytest.mark.parametrize("name", ["h100-pod", "nvl72", "paper-a", "paper-b"])
def test_clusters(name: str) -> None:
    cluster = load_cluster(name)
    assert cluster.name == name
    assert cluster.efficiency == 1.0
    topology = cluster.topology(2 * cluster.devices_per_node)
    assert topology.num_nodes == 2
    assert cluster.topology(cluster.devices_per_node).num_nodes == 1


def test_an_unknown_key_names_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match="did you mean loads.skew"):
        load_workload("gpt-moe-s", ["loads.skw=1"])


def test_a_path_is_a_file(tmp_path: object) -> None:
    with pytest.raises(ConfigError, match="there is no configuration"):
        load_cluster(f"{tmp_path}/nowhere.yaml")
