"""Simulate a workload on a cluster: policies over drifting loads, then steps on the engine. Pure.

Only a few layers have loads of their own, which the others repeat, and only a few steps are timed;
policies see every step's loads. Devices beyond one group of expert ranks are copies of that group.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from collectives.topology import Topology
from hecate.planner.costs import StepCosts
from hecate.simulate.cluster import ClusterConfig
from hecate.simulate.costs import data_sheet_costs
from hecate.simulate.loads import DriftingLoads
from hecate.simulate.memory import Memory, activation_bytes, memory_of, slots_in_memory
from hecate.simulate.network import Network, all_reduce
from hecate.simulate.play import Group, Trace, even_owners, play
from hecate.simulate.step import LayerWork, StepPlan, StepTime, run_step
from hecate.simulate.strategies import CEILING, Strategy, build_policy
from hecate.simulate.timeline import Work
from hecate.simulate.workload import WorkloadConfig

REPLICATION_LEAD = 6  # steps before a timed one in which lasting replicas may settle


@dataclass(frozen=True)
class Sampling:
    """``steps`` in all, of which those in ``timed`` go to the engine; ``layers`` with own loads."""

    steps: int = 200
    timed: tuple[int, ...] = (100, 117, 133, 154, 171, 198)
    layers: int = 12
    seed: int = 0


QUICK = Sampling(steps=60, timed=(33, 47, 58), layers=4)


@dataclass(frozen=True)
class GroupSteps:
    """What a strategy makes of a trace: the layers of each timed step.

    ``between_s``: seconds of re-sharding, spread over all steps. ``copies_YW``: of the timed step
    with most. ``imbalance``: busiest rank over mean, of slots that ranks compute; mean of layers.
    ``hot``: experts that attention hides, ``kept``: copies of a layer that a rank has memory for.
    """

    steps: tuple[tuple[LayerWork, ...], ...]
    between_s: float
    copies_YW: npt.NDArray[np.int64]
    imbalance: float
    most_imbalance: float
    hot: int
    kept: int


@dataclass(frozen=True)
class Outcome:
    """One simulated row. ``charged_s``: mean over timed steps and ranks, by what it was spent on.

    ``tokens_per_s``: of all devices. ``last``: the last timed step.
    """

    devices: int
    strategy: Strategy
    step_s: float
    charged_s: dict[str, float]
    tokens_per_s: float
    copies: float
    memory: Memory
    group: GroupSteps
    last: StepTime


def make_trace(workload: WorkloadConfig, devices: int, sampling: Sampling) -> Trace:
    """The same loads for every strategy."""
    world_size = workload.group_size(devices)
    num_layers = min(workload.layers, sampling.layers)
    loads = DriftingLoads(
        workload.loads,
        num_layers,
        workload.num_experts(devices),
        workload.top_k,
        seed=sampling.seed,
    )
    totals, timed = [], {}
    for step in range(sampling.steps):
        shares_YE = loads.step()
        counts = tuple(loads.counts(shares_E, workload.slots, world_size) for shares_E in shares_YE)
        totals.append(np.stack([counts_WE.sum(0) for counts_WE in counts]))
        if step in sampling.timed:
            timed[step] = counts
    return Trace(tuple(totals), timed)


def group_network(cluster: ClusterConfig, world_size: int) -> Network:
    return Network(cluster.topology(world_size), cards_per_node=cluster.cards_per_node)


def plan_group(
    cluster: ClusterConfig,
    workload: WorkloadConfig,
    devices: int,
    strategy: Strategy,
    trace: Trace,
) -> GroupSteps:
    """Let the strategy's policy plan, re-shard and route over the whole trace."""
    return _Group(cluster, workload, devices, strategy).play(trace)


class _Group:
    """One group of expert ranks under one strategy."""

    def __init__(
        self, cluster: ClusterConfig, workload: WorkloadConfig, devices: int, strategy: Strategy
    ) -> None:
        self._workload, self._strategy, self._devices = workload, strategy, devices
        self._world_size = workload.group_size(devices)
        self._num_experts = workload.num_experts(devices)
        self._costs = data_sheet_costs(cluster, workload)
        self._network = group_network(cluster, self._world_size)
        self._cluster = cluster
        # more than all experts nobody can hold
        self.kept = min(self._slots(cluster.device.memory_bytes), self._num_experts)
        step_costs, topology = self._step_costs(), self._network.topology
        self._hot = min(step_costs.overlap_experts(topology), self._num_experts)
        self._policy = build_policy(strategy, step_costs, topology)

    def _owned(self) -> float:
        return self._num_experts * self._workload.layers / self._world_size

    def _slots(self, device_bytes: float) -> int:
        used = memory_of(
            self._workload,
            owned_experts=self._owned(),
            copies_Y=(),
            rematerialize=False,
            activation_bytes=activations(self._cluster, self._workload, 1.0),
            devices=self._devices,
        )
        remat = self._strategy.rematerialize
        free = device_bytes - used.total_bytes
        return slots_in_memory(max(0.0, free), self._workload, rematerialize=remat)

    def _step_costs(self) -> StepCosts:
        """What the policy reckons with: what a run on this cluster would measure."""
        costs = self._costs
        return StepCosts(
            slot_s=costs.slot_forward_s + costs.slot_backward_s,
            gather_bytes=costs.gather_bytes,
            reduce_bytes=costs.reduce_bytes,
            launch_s=self._network.launch_s,
            hidden_gather_s=costs.layer_forward_s,
            hidden_reduce_s=costs.layer_backward_s,
            gathers=2 if self._strategy.rematerialize else 1,
            slots_per_rank=self.kept,
        )

    def play(self, trace: Trace) -> GroupSteps:
        num_layers = len(trace.totals[0])
        group = Group(
            self._policy,
            self._network,
            self._costs,
            even_owners(self._num_experts, self._world_size, self._workload.layers)[:num_layers],
            self._workload.expert_parameters * self._workload.state_bytes,
            even_choices=self._strategy.policy == CEILING,
        )
        planned = set(trace.timed)
        if self._policy.name == "replication":
            planned |= {s - lead for s in trace.timed for lead in range(REPLICATION_LEAD)}
        played = play(group, trace, planned=planned)
        uneven = [step.imbalance for step in played.steps]
        most = max((step.copies_YW for step in played.steps), key=lambda YW: int(YW.sum()))
        moving_s = sum(played.moved_s) / len(trace.totals)
        return GroupSteps(
            steps=tuple(step.layers for step in played.steps),
            between_s=moving_s * self._workload.layers / num_layers,
            copies_YW=most,
            imbalance=float(np.mean(uneven)),
            most_imbalance=float(np.max(uneven)),
            hot=self._hot,
            kept=self.kept,
        )


def activations(
    cluster: ClusterConfig, workload: WorkloadConfig, busiest_over_mean: float
) -> float:
    """Bytes of them on the rank that computes most slots."""
    return activation_bytes(
        workload,
        busiest_over_mean=busiest_over_mean,
        stored_scores=not cluster.device.fused_attention,
    )


def copies_kept(
    cluster: ClusterConfig, workload: WorkloadConfig, devices: int, strategy: Strategy
) -> int:
    """The paper's *m*: what a group plans depends on the number of devices by it alone."""
    return _Group(cluster, workload, devices, strategy).kept


def _memory(
    cluster: ClusterConfig,
    workload: WorkloadConfig,
    devices: int,
    strategy: Strategy,
    group: GroupSteps,
) -> Memory:
    """Of the device with most copies."""
    layers, copies_YW = workload.layers, group.copies_YW
    repeats = math.ceil(layers / len(copies_YW))
    fullest = int(copies_YW.sum(0).argmax())
    copies_Y = np.tile(copies_YW[:, fullest], repeats)[:layers]
    return memory_of(
        workload,
        owned_experts=workload.num_experts(devices) * layers / workload.group_size(devices),
        copies_Y=copies_Y.tolist(),
        rematerialize=strategy.rematerialize,
        activation_bytes=activations(cluster, workload, group.most_imbalance),
        devices=devices,
    )


def time_steps(
    cluster: ClusterConfig,
    workload: WorkloadConfig,
    devices: int,
    strategy: Strategy,
    group: GroupSteps,
) -> Outcome:
    """The engine's verdict on a planned group when ``devices`` devices train together."""
    costs = data_sheet_costs(cluster, workload)
    world_size = workload.group_size(devices)
    owned = workload.num_experts(devices) * workload.layers / world_size
    if workload.sharded:  # every device updates its part of what is spread
        costs = replace(costs, optimizer_s=costs.optimizer_s / devices)
        owned /= workload.num_groups(devices)
    topology = cluster.topology(devices)
    times = []
    for few in group.steps:
        plan = StepPlan(
            layers=[few[index % len(few)] for index in range(workload.layers)],
            counts=Work(topology.across.latency_s if world_size > 1 else 0.0),
            dense=_dense_work(cluster, workload, devices),
            dense_ends=all_reduce(topology, workload.end_parameters * workload.gradient_bytes),
            between=Work(group.between_s) if group.between_s else None,
            owned_experts=owned,
            rematerialize=strategy.rematerialize,
            recompute=workload.recompute,
        )
        times.append(run_step(plan, costs, world_size))
    names = {name for time in times for name in time.charged_s}
    step_s = float(np.mean([time.step_s for time in times]))
    return Outcome(
        devices=devices,
        strategy=strategy,
        step_s=step_s,
        charged_s={
            name: float(np.mean([time.charged_s.get(name, 0.0) for time in times]))
            for name in sorted(names)
        },
        tokens_per_s=workload.tokens * devices / step_s,
        copies=float(group.copies_YW.sum(1).mean()),
        memory=_memory(cluster, workload, devices, strategy, group),
        group=group,
        last=times[-1],
    )


def _dense_work(cluster: ClusterConfig, workload: WorkloadConfig, devices: int) -> Work:
    """One layer's dense gradients over all devices, its experts' over the copies of the group."""
    topology = cluster.topology(devices)
    # sharded: a gather more than the two halves of a sum
    passes = 1.5 if workload.sharded else 1.0
    dense = all_reduce(topology, passes * workload.dense_parameters * workload.gradient_bytes)
    groups = workload.num_groups(devices)
    if groups == 1:
        return dense
    owned = workload.num_experts(devices) / workload.group_size(devices)
    num_bytes = owned * workload.expert_parameters * workload.gradient_bytes
    experts = _sum_over_groups(topology, num_bytes, workload.group_size(devices), groups)
    return Work(
        dense.launch_s + experts.launch_s,
        dense.inside_s + experts.inside_s,
        dense.across_s + experts.across_s,
    )


def _sum_over_groups(topology: Topology, num_bytes: float, size: int, groups: int) -> Work:
    """Every rank's own experts over ``groups`` copies: inside nodes first, then across them."""
    width = len(topology.nodes[0])
    in_node = max(1, min(groups, width // size))
    num_nodes = max(1, groups // in_node)
    inside = 2 * num_bytes * (in_node - 1) / in_node
    # what a node's ranks own between them crosses its link, each expert once
    across = 2 * num_bytes * min(size, width) * (num_nodes - 1) / num_nodes
    return Work(
        topology.across.latency_s,
        inside / topology.inside.bandwidth_bytes_per_s,
        across / topology.across.bandwidth_bytes_per_s,
    )
