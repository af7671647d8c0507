"""What a replay starts from: a run's settings, costs and owners, and what ``--set`` changed."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from collectives.placement import Placement
from collectives.topology import Link, Topology
from hecate.config import Config
from hecate.errors import ConfigError
from hecate.fssdp.config import ExpertsConfig
from hecate.fssdp.measure import Costs
from hecate.planner.costs import NO_LIMIT
from hecate.planner.owners import even_owners
from hecate.train.loads import LoadsHeader


class PlanConfig(Config):
    """What ``--set`` may change for a replay; the run's own settings are where it starts."""

    experts: ExpertsConfig


def node_of_each(header: LoadsHeader, ranks: int, nodes: int) -> tuple[int, ...]:
    """The node of each rank: as recorded, or equal blocks."""
    world_size = ranks or header.world_size
    if world_size == header.world_size and not nodes:
        return header.topology.node_of_rank
    nodes = nodes or 1
    if world_size < 1 or nodes < 1 or world_size % nodes:
        raise ConfigError(
            "these ranks do not fit on these nodes",
            got=f"{world_size} ranks on {nodes} nodes",
            expected="at least one rank, and as many on each node",
            fix="choose --ranks as a multiple of --nodes",
        )
    return tuple(rank * nodes // world_size for rank in range(world_size))


def replay_costs(
    header: LoadsHeader, config: ExpertsConfig, node_of_rank: tuple[int, ...], source: Path
) -> Costs:
    """The recorded costs, and over them what ``--set`` changed, as ``measured_costs`` takes it."""
    before, after = header.experts.costs, config.costs
    step, inside, across = header.costs, header.topology.inside, header.topology.across
    if after.slot_s != before.slot_s:
        step = replace(step, slot_s=after.slot_s)
    if after.copy_s != before.copy_s:
        bandwidth = (step.gather_bytes + step.reduce_bytes) / (after.copy_s or math.inf)
        inside = across = Link(bandwidth or 1.0, 0.0)
    if after.hidden_s != before.hidden_s:
        hidden_s = after.hidden_s
        step = replace(step, hidden_gather_s=hidden_s, hidden_reduce_s=2 * hidden_s, overlap=1.0)
    if after.slots_per_rank != before.slots_per_rank:
        step = replace(step, slots_per_rank=after.slots_per_rank or NO_LIMIT)
    step = replace(step, gathers=2 if config.rematerialize is True else 1)
    if not step.slot_s or (header.world_size == 1 and not after.copy_s):
        raise ConfigError(
            f"{source} does not say what a slot and a copy cost",
            got=f"slot_s {step.slot_s}: a run of one rank measures neither",
            expected="seconds above 0 for both",
            fix="--set experts.costs.slot_s=2e-5 --set experts.costs.copy_s=5e-3, or what "
            "applies to your machine",
        )
    return Costs(step, Topology(node_of_rank, inside=inside, across=across))


def first_owners(header: LoadsHeader, world_size: int) -> tuple[Placement, ...]:
    """Those recorded; over other ranks, an equal share of each layer."""
    if world_size == header.world_size:
        return tuple(Placement.from_owners(row, world_size) for row in header.owners)
    return even_owners([len(row) for row in header.owners], world_size)
