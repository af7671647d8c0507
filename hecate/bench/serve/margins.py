"""Measurements as rows and summary."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from hecate.bench.report import Row
from hecate.bench.serve.offline import Cell
from hecate.bench.serve.online import Load
from hecate.bench.serve.pressure import RECOMPUTE, ROOMY, SWAP, Pressure
from hecate.bench.serve.sides import NATIVE, VLLM
from hecate.bench.serve.stack import FirstToken, Stack
from serving.bench.timings import Latencies

COLUMNS = {
    "model": "model",
    "what": "what",
    "native": "native",
    "other": "beside",
    "beside": "",
    "ratio": "ratio",
    "unit": "unit",
    "native_roofline": "of roofline",
    "other_roofline": "beside, of roofline",
}


@dataclass(frozen=True)
class OfflineCell:
    """One cell of one model: tokens a second by round and side, and at the roofline."""

    model: str
    cell: Cell
    rates: Mapping[str, Sequence[float]]
    roofline: float

    @property
    def ratio(self) -> float | None:
        """Ours over vLLM's within a round, the median of all rounds."""
        if VLLM not in self.rates:
            return None
        pairs = zip(self.rates[NATIVE], self.rates[VLLM], strict=True)
        return statistics.median(ours / theirs for ours, theirs in pairs)


def offline_row(cell: OfflineCell) -> Row:
    ours = statistics.median(cell.rates[NATIVE])
    theirs = statistics.median(cell.rates[VLLM]) if VLLM in cell.rates else None
    return {
        "model": cell.model,
        "what": cell.cell.title,
        "native": ours,
        "other": theirs,
        "beside": "vLLM" if theirs is not None else "vLLM is not installed",
        "ratio": cell.ratio,
        "unit": "tokens/s",
        "native_roofline": ours / cell.roofline,
        "other_roofline": None if theirs is None else theirs / cell.roofline,
        "rounds": {name: list(values) for name, values in cell.rates.items()},
    }


_LATENCIES = {
    "ttft_p50_s": "TTFT p50",
    "ttft_p99_s": "TTFT p99",
    "tpot_p50_s": "TPOT p50",
    "tpot_p99_s": "TPOT p99",
}


def load_rows(model: str, load: Load) -> Iterable[Row]:
    """Four rows; ratios below 1 are in our favour."""
    ours, theirs = load.found[NATIVE], load.found.get(VLLM)
    failed: dict[str, JsonValue] = {
        name: found.failed for name, found in load.found.items() if found.failed
    }
    for name, title in _LATENCIES.items():
        mine = _ms(ours, name)
        other = _ms(theirs, name) if theirs is not None else None
        yield {
            "model": model,
            "what": f"{load.demand}, {load.share:.0%} load, {title}",
            "native": mine,
            "other": other,
            "beside": "vLLM" if theirs is not None else "vLLM is not installed",
            "ratio": mine / other if mine and other else None,
            "unit": "ms",
            "requests_per_s": load.rate,
            "answered": ours.answered,
            "failed": failed,
            "sent_late_p99_ms": {n: found.late_p99_s * 1e3 for n, found in load.found.items()},
        }


def stack_rows(model: str, stacks: Sequence[Stack], first: FirstToken) -> Iterable[Row]:
    for stack in stacks:
        yield {
            "model": model,
            "what": f"whole stack, batch {stack.batch}",
            "native": statistics.median(stack.alone),
            "other": statistics.median(stack.behind),
            "beside": f"through hecate serve; the client used {stack.client_cores:.2f} of a core",
            "ratio": 1 - overhead(stack),
            "unit": "tokens/s",
            "client_cores": stack.client_cores,
        }
    yield {
        "model": model,
        "what": "first token, low load",
        "native": first.alone_s * 1e3,
        "other": first.behind_s * 1e3,
        "beside": "through hecate serve",
        "ratio": first.behind_s / first.alone_s,
        "unit": "ms",
    }


def prefix_row(model: str, cold_s: float, warm_s: float) -> Row:
    return {
        "model": model,
        "what": "first token, 2,048 tokens of prompt known",
        "native": warm_s * 1e3,
        "other": cold_s * 1e3,
        "beside": "nothing known",
        "ratio": cold_s / warm_s,
        "unit": "ms",
    }


def pressure_row(found: Pressure) -> Row:
    roomy, again, copied = (
        statistics.median(found.rates[name]) for name in (ROOMY, RECOMPUTE, SWAP)
    )
    counts = ("preemptions_total", "swap_outs_total", "recomputed_tokens_total")
    return {
        "model": found.model,
        "what": f"{found.cell.title}, in {found.share:.0%} of the memory, with swap",
        "native": copied,
        "other": again,
        "beside": f"without; {roomy:,.0f} with all of it",
        "ratio": swap_gain(found),
        "unit": "tokens/s",
        "rounds": {name: list(values) for name, values in found.rates.items()},
        "counts": {name: {key: load[key] for key in counts} for name, load in found.loads.items()},
    }


def swap_gain(found: Pressure) -> float:
    """Throughput with swap over that without, the median of all rounds."""
    pairs = zip(found.rates[SWAP], found.rates[RECOMPUTE], strict=True)
    return statistics.median(swap / again for swap, again in pairs)


def overhead(stack: Stack) -> float:
    """The share of the engine's throughput that the stack takes, the median of all rounds."""
    pairs = zip(stack.alone, stack.behind, strict=True)
    return statistics.median(1 - behind / alone for alone, behind in pairs)


def summary(
    cells: Sequence[OfflineCell],
    loads: Sequence[Load],
    stacks: Sequence[Stack],
    firsts: Sequence[FirstToken],
    prefixes: Sequence[tuple[float, float]],
    pressures: Sequence[Pressure],
) -> dict[str, float]:
    """The figures to compare; NaN for what needs vLLM where it is not installed."""
    ratios = [ratio for cell in cells if (ratio := cell.ratio) is not None]
    p99 = [
        getattr(load.found[NATIVE], name) / getattr(load.found[VLLM], name)
        for load in loads
        if VLLM in load.found
        for name in ("ttft_p99_s", "tpot_p99_s")
    ]
    added = [1e3 * (first.behind_s - first.alone_s) for first in firsts]
    return {
        "min_throughput_vs_vllm": min(ratios, default=math.nan),
        "geomean_throughput_vs_vllm": statistics.geometric_mean(ratios) if ratios else math.nan,
        "max_p99_vs_vllm": max(p99, default=math.nan),
        "stack_overhead": max((overhead(stack) for stack in stacks), default=math.nan),
        "stack_ttft_added_ms": max(added, default=math.nan),
        "prefix_ttft_gain": min((cold / warm for cold, warm in prefixes), default=math.nan),
        "swap_vs_recompute": min(map(swap_gain, pressures), default=math.nan),
    }


def _ms(found: Latencies, name: str) -> float:
    return 1e3 * float(getattr(found, name))
