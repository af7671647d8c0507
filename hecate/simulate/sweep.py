"""Every policy on every number of devices: outcomes of one cluster and workload, in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hecate.errors import ConfigError
from hecate.simulate.cluster import ClusterConfig
from hecate.simulate.play import Trace
from hecate.simulate.run import (
    GroupSteps,
    Outcome,
    Sampling,
    copies_kept,
    make_trace,
    plan_group,
    time_steps,
)
from hecate.simulate.strategies import CEILING, STRATEGIES, Strategy
from hecate.simulate.workload import WorkloadConfig

BASELINE = "expert_parallel"


@dataclass(frozen=True)
class Compared:
    """One outcome beside expert parallelism and balanced routing on as many devices.

    ``fits``: whether a device has the memory.
    """

    workload: WorkloadConfig
    outcome: Outcome
    speedup: float
    ceiling_share: float
    fits: bool


def sweep(
    cluster: ClusterConfig,
    workload: WorkloadConfig,
    devices: Sequence[int],
    strategies: Sequence[Strategy],
    sampling: Sampling,
) -> list[Compared]:
    """By devices, then strategies. Raises ``ConfigError`` where devices do not fit the experts."""
    planner = GroupPlanner(cluster, workload, sampling)
    rows = []
    for count in devices:
        check_devices(workload, count)
        base = planner.outcome(count, STRATEGIES[BASELINE]).step_s
        ceiling = planner.outcome(count, STRATEGIES[CEILING]).step_s
        for strategy in strategies:
            outcome = planner.outcome(count, strategy)
            fits = outcome.memory.total_bytes <= cluster.device.memory_bytes
            rows.append(
                Compared(workload, outcome, base / outcome.step_s, ceiling / outcome.step_s, fits)
            )
    return rows


class GroupPlanner:
    """Outcomes of one workload; what groups of one size do is planned once and kept."""

    def __init__(
        self, cluster: ClusterConfig, workload: WorkloadConfig, sampling: Sampling
    ) -> None:
        self._cluster, self._workload, self._sampling = cluster, workload, sampling
        self._traces: dict[tuple[int, int], Trace] = {}
        self._groups: dict[tuple[Strategy, int, int, int], GroupSteps] = {}

    def outcome(self, devices: int, strategy: Strategy) -> Outcome:
        cluster, workload = self._cluster, self._workload
        size = (workload.group_size(devices), workload.num_experts(devices))
        if size not in self._traces:
            self._traces[size] = make_trace(workload, devices, self._sampling)
        key = (strategy, *size, copies_kept(cluster, workload, devices, strategy))
        if key not in self._groups:
            trace = self._traces[size]
            self._groups[key] = plan_group(cluster, workload, devices, strategy, trace)
        return time_steps(cluster, workload, devices, strategy, self._groups[key])


def check_devices(workload: WorkloadConfig, devices: int) -> None:
    size = workload.group_size(devices)
    if devices % size:
        raise ConfigError(
            f"{workload.name} cannot be simulated on {devices} devices",
            got=f"groups of {size} devices that share one copy of the experts",
            expected=f"at most {size} devices, or a multiple of {size}",
            fix="give --devices such a number, or --set expert_ranks=...",
        )
    if workload.num_experts(devices) < workload.top_k:
        raise ConfigError(
            f"{workload.name} has {workload.num_experts(devices)} experts on {devices} devices",
            expected=f"at least top_k = {workload.top_k}",
            fix="give --devices a larger number",
        )
