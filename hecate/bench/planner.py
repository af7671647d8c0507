"""How long planning takes: Algorithm 1 over all layers in one call, and the choice by time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from pydantic import JsonValue

from collectives.topology import Link, Topology
from hecate.bench.report import BenchOptions, Report
from hecate.planner.costs import StepCosts
from hecate.planner.load import Loads
from hecate.planner.materialization import materialize_by_load, materialize_by_time
from hecate.planner.plan import Ids, Replicas
from hecate.train.host_memory import keep_freed_memory

COLUMNS = {
    "rule": "rule",
    "layers": "layers",
    "experts": "experts",
    "ranks": "ranks",
    "copies": "copies",
    "ms": "ms",
    "ms_per_layer": "ms / layer",
    "target_ms": "target",
}
SEED = 0
INSIDE, ACROSS = Link(300e9, 5e-6), Link(50e9, 1e-5)
COSTS = StepCosts(
    slot_s=1e-7,
    gather_bytes=1 << 23,
    reduce_bytes=1 << 24,
    hidden_gather_s=1e-3,
    hidden_reduce_s=2e-3,
)


@dataclass(frozen=True)
class Case:
    """One planning problem. ``hot`` and ``slots`` are the paper's t and m."""

    num_layers: int
    num_experts: int
    node_of_rank: tuple[int, ...]
    hot: int
    slots: int

    @classmethod
    def of(cls, layers: int, experts: int, ranks: int, width: int, hot: int, slots: int) -> Case:
        """``ranks`` ranks in nodes of ``width``."""
        return cls(layers, experts, tuple(rank // width for rank in range(ranks)), hot, slots)

    def loads(self) -> Loads:
        """Skewed as routers without a balancing loss are: share of the k-th expert as 1/k^0.8."""
        rng = np.random.default_rng(SEED)
        shares = np.arange(1, self.num_experts + 1) ** -0.8
        slots = 4096 * 8 * len(self.node_of_rank)
        rows = [rng.permutation(shares) for _ in range(self.num_layers)]
        loads_YE: Loads = np.floor(np.stack(rows) / shares.sum() * slots)
        return loads_YE

    def owners(self) -> Ids:
        """As even as it gets; each layer starts at another rank."""
        ranks = len(self.node_of_rank)
        expert, layer = np.arange(self.num_experts), np.arange(self.num_layers)[:, None]
        return ((expert * ranks // self.num_experts + layer) % ranks).astype(np.int32)


LARGE = Case.of(61, 256, 2048, 8, 32, 2)
MEDIUM = Case.of(24, 64, 32, 8, 8, 2)
MEDIUM_ALONE = Case.of(1, 64, 32, 8, 8, 2)
SMALL = Case.of(4, 16, 2, 2, 4, 4)


def bench_planner(options: BenchOptions) -> Report:
    """Median over repeats, on one core."""
    keep_freed_memory()
    repeats = 5 if options.quick else 50
    rows = (
        measure("paper", LARGE, repeats, 20.0),
        measure("paper", MEDIUM, repeats, 1.0 * MEDIUM.num_layers),
        measure("paper", MEDIUM_ALONE, repeats, 1.0),
        measure("paper", SMALL, repeats, 0.0),
        measure("predicted", SMALL, repeats, 0.0),
        measure("predicted", MEDIUM, repeats, 1.0 * MEDIUM.num_layers),
    )
    summary = {
        "ms_61x256x2048": float(str(rows[0]["ms"])),
        "ms_per_layer_64x32": float(str(rows[1]["ms_per_layer"])),
        "ms_one_layer_64x32": float(str(rows[2]["ms"])),
        "ms_predicted_4x16x2": float(str(rows[4]["ms"])),
        "ms_predicted_per_layer_64x32": float(str(rows[5]["ms_per_layer"])),
    }
    notes = (
        "paper: Algorithm 1, all layers in one call; predicted: the copies that shorten the step.",
        "ms / layer is that of one call over all layers, divided by their number.",
        "freed memory stays in the process (hecate/train/host_memory.py), as in a trainer's.",
    )
    return Report("planner", {"seed": SEED, "repeats": repeats}, COLUMNS, rows, summary, notes)


def measure(rule: str, case: Case, repeats: int, target_ms: float) -> dict[str, JsonValue]:
    loads_YE, owners_YE = case.loads(), case.owners()
    topology = Topology(case.node_of_rank, inside=INSIDE, across=ACROSS)

    def plan() -> Replicas:
        if rule == "paper":
            return materialize_by_load(
                loads_YE,
                owners_YE,
                case.node_of_rank,
                overlap_experts=case.hot,
                slots_per_rank=case.slots,
            )
        return materialize_by_time(
            loads_YE,
            owners_YE,
            topology,
            COSTS,
            overlap_experts=case.hot,
            slots_per_rank=case.slots,
        )

    copies = len(plan())
    taken_ms = _median_ms(plan, repeats)
    return {
        "rule": rule,
        "layers": case.num_layers,
        "experts": case.num_experts,
        "ranks": len(case.node_of_rank),
        "copies": copies,
        "ms": round(taken_ms, 3),
        "ms_per_layer": round(taken_ms / case.num_layers, 4),
        "target_ms": target_ms or "",
    }


def _median_ms(action: Callable[[], object], repeats: int) -> float:
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        action()
        taken.append(time.perf_counter() - started)
    return 1e3 * statistics.median(taken)
