"""A run's folder as training leaves it, written by the run's own writers, without training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from collectives.topology import Link, Topology
from hecate.fssdp.config import ExpertsConfig
from hecate.logging.jsonl import JsonlSink
from hecate.planner.costs import StepCosts
from hecate.train.loads import LoadsHeader, LoadsRecorder
from hecate.train.profile.overlap import Overlap
from hecate.train.profile.phases import Label
from hecate.train.profile.summary import RankProfile, as_record

CONFIG = """\
name: small
data:
  sequence_tokens: 64
train:
  steps: {steps}
  batch_sequences: 8
"""


def logged(step: int, layers: int = 4, experts: int = 8, **changes: Any) -> dict[str, Any]:
    """A training line's values, all of them simple functions of the step."""
    return {
        "loss": 4.0 + 20 / step,
        "learning_rate": 1e-3,
        "grad_norm": 1.0,
        "tokens_per_s": 1000.0 + step,
        "mfu": 0.5,
        "load/tokens_per_expert": [[step + e for e in range(experts)] for _ in range(layers)],
        "load/experts_max_over_mean": [2.0] * layers,
        "load/ranks_max_over_mean": [1.5 + 0.1 * layer for layer in range(layers)],
        "load/computed_max_over_mean": [1.0] * layers,
        "load/copies": 3.0,
        "load/dead_experts": [0.0] * layers,
        "load/idle_copies": [1.0] * layers,
        "load/missed_experts": [0.0] * layers,
        "load/moved_experts": 2.0,
        "gather/bytes": 1e6,
        "reduce/bytes": 2e6,
        "load/straggler_wait_s": [0.01] * layers,
        "seconds/forward": 2.0,
        "seconds/all_to_all": 1.0,
        "seconds/backward": 4.0,
        "memory/resident_bytes": 2**30,
        "memory/peak_resident_bytes": 2**31,
        **changes,
    }


def write_metrics(
    folder: Path, steps: range, *, resumed: int = 0, begun_s: float = 1.8e9, **sizes: int
) -> None:
    """A line for each of ``steps``, 8 s apart, of which 7 are of phases."""
    times = iter(begun_s + 8 * number for number in range(1, len(steps) + 1))
    sink = JsonlSink(folder / "metrics.jsonl", resumed_step=resumed, clock=lambda: next(times))
    for step in steps:
        sink.log(step, logged(step, **sizes))
    sink.close()


def write_loads(
    folder: Path, steps: range, *, layers: int = 4, experts: int = 8, ranks: int = 2
) -> None:
    """Loads of ``steps``, counted from 0. Expert 0 has nothing, the others as many slots each."""
    header = LoadsHeader(
        step=steps.start,
        owners=tuple(tuple(e * ranks // experts for e in range(experts)) for _ in range(layers)),
        window=np.zeros((0, layers, experts), dtype=np.int64),
        gather_bytes=(10,) * layers,
        reduce_bytes=(20,) * layers,
        costs=StepCosts(1.0, 10, 20),
        topology=Topology((0,) * ranks, inside=Link(1e9, 0.0), across=Link(1e9, 0.0)),
        experts=ExpertsConfig(),
    )
    recorder = LoadsRecorder(folder / "loads.jsonl", header)
    counts_WE = np.full((ranks, experts), 5, dtype=np.int64)
    counts_WE[:, 0] = 0
    for step in steps:
        recorder.record(step, ((counts_WE,) * layers,) * 2)
    recorder.close()


def write_starts(folder: Path, *starts: tuple[int, float, int]) -> None:
    """``(step, time_s, ranks)`` of each."""
    lines = [
        {"step": step, "time_s": time_s, "ranks": ranks, "nodes": 1, "environment": {"cores": "2"}}
        for step, time_s, ranks in starts
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "starts.jsonl").write_text(text)


def write_run(folder: Path, *, steps: int = 30, every: int = 10, **sizes: int) -> Path:
    """A finished run of ``steps`` steps, logged every ``every`` and once evaluated."""
    folder.mkdir(parents=True, exist_ok=True)
    write_metrics(folder, range(every, steps + 1, every), **sizes)
    evaluation = {"step": steps, "time_s": 1.8e9 + 8 * steps // every + 5, "eval/loss": 4.5}
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(evaluation | {"eval/bits_per_byte": 1.25}) + "\n")
    write_loads(folder, range(steps), **sizes)
    write_starts(folder, (0, 1.8e9, 2))
    (folder / "config.yaml").write_text(CONFIG.format(steps=steps))
    return folder


def write_large(folder: Path, *, steps: int, every: int, layers: int, experts: int) -> None:
    """A long run of a large model; the slots of experts are always the same two tables."""
    tables = [json.dumps([[n + e for e in range(experts)]] * layers) for n in (0, 7)]
    with (folder / "metrics.jsonl").open("w") as file:
        for place, step in enumerate(range(every, steps + 1, every)):
            record = {"step": step, "time_s": 1.8e9 + step} | logged(step, layers, 1)
            del record["load/tokens_per_expert"]
            rest = json.dumps(record, separators=(",", ":"))[1:]
            file.write(f'{{"load/tokens_per_expert":{tables[place % 2]},{rest}\n')
    (folder / "config.yaml").write_text(CONFIG.format(steps=steps))


def write_profile(folder: Path) -> None:
    """Of two ranks and two steps; what they spent and exposed is added up over both steps."""
    ranks = [
        RankProfile(
            rank,
            2,
            0.4,
            {Label("experts", 0): 0.1, Label("experts", 0, backward=True): 0.2},
            {"sparse gather": Overlap(4, 0.04, 0.04 * rank)},
        )
        for rank in range(2)
    ]
    path = folder / "profile" / "summary.json"
    path.parent.mkdir()
    path.write_text(json.dumps(as_record(ranks, first_step=3)))
