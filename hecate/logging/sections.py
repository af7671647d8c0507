"""Metrics as charts for programs that group them: which section each belongs to.

A chart is called ``section/name``. A metric of one number for each layer becomes two curves, its
mean and its maximum, and a heat map; one of layers and experts becomes a heat map for each layer.
Of many layers with many experts, neighbouring experts are added up, so that a line stays small.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hecate.logging.protocol import Value

MOST_NUMBERS = 4096  # in all heat maps of a metric: about as many as can be told apart

SECTIONS = {
    "loss": "train",
    "perplexity": "train",
    "bits_per_byte": "train",
    "auxiliary_loss": "train",
    "learning_rate": "train",
    "grad_norm": "train",
    "skipped_steps": "train",
    "noise_scale_tokens": "train",
    "tokens_per_s": "speed",
    "mfu": "speed",
    "experts/mfu": "speed",
    "load/copies": "placement",
    "load/moved_experts": "placement",
    "load/idle_copies": "placement",
    "load/missed_experts": "placement",
    "load/straggler_wait_s": "waiting",
    "gather/exposed_s": "waiting",
    "gather/hidden_s": "waiting",
    "gather/bytes": "moved bytes",
    "reduce/bytes": "moved bytes",
    "load/tokens_per_expert": "experts",
}
_NAMES = {
    "experts/mfu": "experts_mfu",
    "gather/exposed_s": "gather_exposed_s",
    "gather/hidden_s": "gather_hidden_s",
    "gather/bytes": "gather",
    "reduce/bytes": "reduce",
}


@dataclass
class Charts:
    """Of one logged step: curves of a number each, maps of one for each layer or expert."""

    curves: dict[str, float] = field(default_factory=dict)
    maps: dict[str, Sequence[float]] = field(default_factory=dict)


def charts_of(values: Mapping[str, Value]) -> Charts:
    """The charts of ``values``; phases also as shares of their sum."""
    charts = Charts()
    for name, value in values.items():
        _add(charts, chart_name(name), value)
    seconds = {
        name: value
        for name, value in values.items()
        if name.startswith("seconds/") and isinstance(value, (int, float))
    }
    total_s = sum(seconds.values())
    if total_s > 0:
        for name, spent_s in seconds.items():
            charts.curves[f"share of time/{name.removeprefix('seconds/')}"] = spent_s / total_s
    return charts


def chart_name(name: str) -> str:
    """``section/name``; a metric that is not known stays in the section that its name has."""
    short = _NAMES.get(name, name.rpartition("/")[2])
    if name in SECTIONS:
        return f"{SECTIONS[name]}/{short}"
    return name if "/" in name else f"train/{name}"


def _add(charts: Charts, name: str, value: Value) -> None:
    if isinstance(value, (int, float)):
        charts.curves[name] = value
        return
    rows = [row for row in value if not isinstance(row, (int, float))]
    digits = len(str(len(rows) - 1))
    for layer, row in enumerate(rows):
        most = max(1, MOST_NUMBERS // len(rows))
        charts.maps[f"{name}/layer_{layer:0{digits}d}"] = _together(row, most)
    numbers = [one for one in value if isinstance(one, (int, float))]
    if numbers:
        charts.curves[f"{name}/mean"] = sum(numbers) / len(numbers)
        charts.curves[f"{name}/max"] = max(numbers)
        charts.maps[f"{name}/by_layer"] = numbers


def _together(row: Sequence[float], most: int) -> Sequence[float]:
    """``row``, or the sums of as few neighbours each as make it no longer than ``most``."""
    stride = max(1, -(-len(row) // most))
    if stride == 1:
        return row
    return [sum(row[start : start + stride]) for start in range(0, len(row), stride)]
