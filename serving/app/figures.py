"""What replicas tell of themselves, as figures for charts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from serving.app.latency import LatencyTotals
from serving.engine.protocol import EngineLoad

SUMMED = ("queue", "batch", "tokens_per_s", "prompt_tokens_per_s")
ALL = "all"


@dataclass(frozen=True)
class Reading:
    """How a replica is at ``at_s`` of its own clock."""

    replica: str
    at_s: float
    load: EngineLoad
    latency: LatencyTotals


def replica_figures(before: Reading | None, now: Reading) -> dict[str, float]:
    """Of one replica: how it is, and rates and means since ``before``.

    ``queue`` and ``batch``: requests that wait and that run. ``memory``: the share of its blocks
    that is taken. ``cache_hit_rate``: of prompts, what was cached. ``ttft_s``: to a request's first
    token; ``tpot_s``: of each later token of answers that ended. What did not occur is left out.
    """
    load = now.load
    figures = {
        "queue": float(load.waiting),
        "batch": float(load.running),
        "memory": load.blocks_used / max(1, load.blocks_total),
    }
    if before is None or now.at_s <= before.at_s:
        return figures
    seconds, past = now.at_s - before.at_s, before.load
    figures["tokens_per_s"] = (load.generated_tokens_total - past.generated_tokens_total) / seconds
    prompts = load.prompt_tokens_total - past.prompt_tokens_total
    figures["prompt_tokens_per_s"] = prompts / seconds
    figures["preemptions"] = float(load.preemptions_total - past.preemptions_total)
    looked_up = load.prefix_query_tokens_total - past.prefix_query_tokens_total
    if looked_up:
        hits = load.prefix_hit_tokens_total - past.prefix_hit_tokens_total
        figures["cache_hit_rate"] = hits / looked_up
    times, timed = now.latency, before.latency
    if first := times.first_tokens - timed.first_tokens:
        figures["ttft_s"] = (times.first_token_s - timed.first_token_s) / first
    if later := times.later_tokens - timed.later_tokens:
        figures["tpot_s"] = (times.later_token_s - timed.later_token_s) / later
    return figures


def charts(before: Mapping[str, Reading], now: Mapping[str, Reading]) -> dict[str, float]:
    """Of all replicas, by name: ``figure/replica``, and ``figure/all`` for what adds up."""
    row = {f"replicas/{ALL}": float(len(now))}
    for replica, reading in now.items():
        for name, value in replica_figures(before.get(replica), reading).items():
            row[f"{name}/{replica}"] = value
            if name in SUMMED:
                row[f"{name}/{ALL}"] = row.get(f"{name}/{ALL}", 0.0) + value
    return row
