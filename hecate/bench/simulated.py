"""Simulated outcomes as a report: rows that say that they are simulated, and what was assumed."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import JsonValue

from hecate.bench.report import Report, Row
from hecate.simulate.cluster import ClusterConfig
from hecate.simulate.run import Sampling
from hecate.simulate.sweep import Compared
from hecate.simulate.workload import WorkloadConfig

COLUMNS = {
    "workload": "workload",
    "devices": "devices",
    "policy": "policy",
    "step_ms": "step ms",
    "tokens_per_s": "tokens/s",
    "speedup_vs_ep": "x EP",
    "ceiling_share": "of balanced",
    "imbalance": "max/mean",
    "copies": "copies/layer",
    "all_to_all_ms": "exchange ms",
    "experts_ms": "experts ms",
    "straggler_ms": "straggler ms",
    "exposed_ms": "exposed copies ms",
    "model_gb": "model GB",
    "memory_gb": "memory GB",
    "fits": "fits",
}


def simulated_row(cluster: ClusterConfig, compared: Compared) -> Row:
    """One line of the table; JSON has every part of the step, too."""
    outcome, workload = compared.outcome, compared.workload
    charged, group = outcome.charged_s, outcome.group
    copies_s = sum(charged.get(name, 0.0) for name in ("gather", "late gather", "reduce"))
    parts: dict[str, JsonValue] = {name: 1e3 * value for name, value in charged.items()}
    return {
        "simulated": True,
        "cluster": cluster.name,
        "workload": workload.name,
        "devices": outcome.devices,
        "policy": outcome.strategy.name,
        "step_ms": 1e3 * outcome.step_s,
        "tokens_per_s": outcome.tokens_per_s,
        "speedup_vs_ep": compared.speedup,
        "ceiling_share": compared.ceiling_share,
        "imbalance": group.imbalance,
        "copies": outcome.copies,
        "all_to_all_ms": 1e3 * charged.get("all_to_all", 0.0),
        "experts_ms": 1e3 * charged.get("experts", 0.0),
        "straggler_ms": 1e3 * charged.get("straggler", 0.0),
        "exposed_ms": 1e3 * copies_s,
        "model_gb": outcome.memory.model_bytes / 1e9,
        "memory_gb": outcome.memory.total_bytes / 1e9,
        "fits": compared.fits,
        "overlap_experts": group.hot,
        "slots_per_rank": group.kept,
        "parts_ms": parts,
        "assumed": assumed(workload),
    }


def assumed(workload: WorkloadConfig) -> str:
    """What no source says, in one line."""
    loads = workload.loads
    spread = f"groups of {workload.expert_ranks}" if workload.expert_ranks else "all devices"
    return (
        f"{workload.sequences_per_device} x {workload.sequence_tokens} tokens a device; shares as "
        f"k^-{loads.skew:g}, drift {loads.drift:g} over {loads.memory_steps:g} steps; experts over "
        f"{spread}"
    )


def simulated_report(
    cluster: ClusterConfig,
    workloads: Sequence[WorkloadConfig],
    rows: Sequence[Compared],
    sampling: Sampling,
) -> Report:
    """The table of ``hecate simulate``. Its summary is each policy's least and best speed-up."""
    summary: dict[str, float] = {}
    for name in dict.fromkeys(row.outcome.strategy.name for row in rows):
        ups = [row.speedup for row in rows if row.outcome.strategy.name == name]
        summary[f"{name}_least_speedup"] = min(ups)
        summary[f"{name}_best_speedup"] = max(ups)
    notes = [
        f"every row is simulated: {cluster.name}, from {' '.join(cluster.sources.split())}",
        *(f"assumed for {workload.name}: {assumed(workload)}" for workload in workloads),
        f"{len(sampling.timed)} of {sampling.steps} steps are timed, with the loads of up to "
        f"{sampling.layers} layers; no pipeline or tensor parallelism",
        "of balanced: the step with even routing over this step; copies also save exchange, so "
        "that a strategy may beat it",
    ]
    settings: dict[str, JsonValue] = {
        "cluster": cluster.model_dump(mode="json"),
        "workloads": [workload.model_dump(mode="json") for workload in workloads],
        "steps": sampling.steps,
        "timed": list(sampling.timed),
        "layers": sampling.layers,
        "seed": sampling.seed,
    }
    table = tuple(simulated_row(cluster, row) for row in rows)
    return Report("simulate", settings, COLUMNS, table, summary, tuple(notes))
