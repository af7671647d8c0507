"""``hecate bench train``: this trainer beside plain transformers, ``Trainer`` and DeepSpeed.

For each model and process layout our trainer is built once and stays; one peer after another is
built beside it, since memory holds two but not all, and the two train in turns, a few steps each.
What is compared is the ratio within a round, which a machine that slows down leaves as it is.
Weights, rows, dtype, packing, optimizer, clipping and threads are the same for all; each peer runs
with what is fastest for it here.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import JsonValue
from rich.console import Console

from hecate.bench.adapters import write_adapter, write_base
from hecate.bench.compare import Measured, row_of, summarise
from hecate.bench.conversations import write_conversations
from hecate.bench.peers import CONTENDERS, OURS, Adapted, Entry, Job
from hecate.bench.report import BenchOptions, Report, require_known
from hecate.bench.rounds import Pace, Stage
from hecate.bench.workloads import (
    LAYOUTS,
    WORKLOADS,
    Layout,
    Workload,
    write_batches,
    write_weights,
)
from hecate.data import DataConfig
from hecate.data.progress import progress_bars
from hecate.train.optim import OptimizerConfig

SEED = 1
OPTIMIZER = OptimizerConfig(learning_rate=5e-4)
STANDARD_LIBRARY = DataConfig()

# Over the steps of a run; sums in another order make single steps differ by far less in fp32.
LOSS_TOLERANCE = {"float32": 1e-3, "bfloat16": 1e-2}

COLUMNS = {
    "model": "model",
    "layout": "layout",
    "contender": "contender",
    "settings": "settings",
    "tokens_per_s": "tokens/s",
    "ours_over_it": "ours / it",
    "ours_over_it_range": "min - max",
    "loss_difference": "loss differs by",
    "peak_mib": "peak MiB",
    "status": "status",
}


QUICK = Pace(
    warm_up_steps=1,
    turn_s=1.5,
    least_rounds=2,
    most_rounds=6,
    most_turn_steps=4,
    total_s=480,
    trial_runs=1,
)
WHOLE = Pace(
    warm_up_steps=4,
    turn_s=6,
    least_rounds=7,
    most_rounds=15,
    most_turn_steps=12,
    total_s=3000,
    trial_runs=3,
)


def bench_train(options: BenchOptions) -> Report:
    """All models, or those of ``only``, in both layouts.

    Raises ``ContenderError`` when our own trainer fails, ``ConfigError`` for an unknown model.
    """
    require_known("there is no such model to train", options.only, WORKLOADS)
    workloads = [w for name, w in WORKLOADS.items() if name in (options.only or WORKLOADS)]
    console = Console(stderr=True)
    pace = QUICK if options.quick else WHOLE
    load = os.getloadavg()[0]
    stages = measure(
        workloads,
        tuple(LAYOUTS.values()),
        CONTENDERS,
        pace,
        dtype=options.dtype,
        console=console,
    )
    return report_of(stages, pace, dtype=options.dtype, load_before=load)


def measure(
    workloads: Sequence[Workload],
    layouts: Sequence[Layout],
    contenders: Mapping[str, Entry],
    pace: Pace,
    *,
    dtype: str,
    console: Console,
    data: DataConfig = STANDARD_LIBRARY,
    keep_freed_memory: bool = False,
) -> list[list[Measured]]:
    """Every workload in every layout, one after another: what each contender did.

    ``keep_freed_memory`` gives peers the malloc settings that our trainer has, which shows what
    these settings alone are worth.
    """
    stages: list[list[Measured]] = []
    deadline = time.monotonic() + pace.total_s
    steps = pace.most_steps(len(contenders) - 1)

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    with tempfile.TemporaryDirectory(prefix="hecate-bench-") as temporary:
        folder = Path(temporary)
        for workload in workloads:
            read = data
            if workload.rows == "conversations":
                read = write_conversations(folder, data.cache)
            with progress_bars(console) as progress:
                batches = write_batches(
                    workload,
                    steps,
                    data=read,
                    seed=SEED,
                    folder=folder,
                    progress=progress,
                )
            weights = write_weights(workload, seed=SEED, folder=folder)
            adapted = None
            if workload.lora.active:
                base = write_base(workload, weights, folder)
                adapted = Adapted(base, write_adapter(workload, base, seed=SEED, folder=folder))
            for layout in layouts:
                job = Job(
                    workload=workload,
                    layout=layout,
                    steps=steps,
                    dtype=dtype,
                    seed=SEED,
                    batches=batches,
                    weights=weights,
                    optimizer=OPTIMIZER,
                    adapted=adapted,
                    trial_runs=pace.trial_runs,
                    keep_freed_memory=keep_freed_memory,
                )
                left = len(workloads) * len(layouts) - len(stages)
                budget_s = (deadline - time.monotonic()) / left
                stage = Stage(job, contenders, pace, time.monotonic() + budget_s, folder, say)
                stages.append(stage.run())
    return stages


def report_of(
    stages: Sequence[Sequence[Measured]], pace: Pace, *, dtype: str, load_before: float
) -> Report:
    """The report of what ``measure`` found; ``load_before``: the machine's load average then."""
    tolerance = LOSS_TOLERANCE[dtype]
    rows = []
    for stage in stages:
        ours = next(m for m in stage if m.contender == OURS)
        rows += [row_of(ours, measured, tolerance=tolerance) for measured in stage]
    settings: dict[str, JsonValue] = {
        "dtype": dtype,
        "seed": SEED,
        "optimizer": OPTIMIZER.model_dump(mode="json"),
        "clip_norm": 1.0,
        "loss_tolerance": tolerance,
        "load_average_before": round(load_before, 2),
        "pace": {
            "warm_up_steps": pace.warm_up_steps,
            "least_rounds": pace.least_rounds,
            "most_rounds": pace.most_rounds,
            "total_s": pace.total_s,
        },
        "models": {
            workload.name: {
                "family": workload.family,
                "sizes": dict(workload.sizes),
                "sequence_tokens": workload.sequence_tokens,
                "batch_sequences": workload.batch_sequences,
                "rows": workload.rows,
                "lora": workload.lora.model_dump(mode="json"),
            }
            for workload in WORKLOADS.values()
        },
        "layouts": {
            layout.name: f"{layout.world_size} process(es) x {layout.threads} thread(s)"
            for layout in LAYOUTS.values()
        },
    }
    return Report(
        "train",
        settings,
        COLUMNS,
        tuple(rows),
        summarise(stages, OURS),
        _notes(rows, tolerance, load_before),
    )


def _notes(
    rows: Sequence[Mapping[str, JsonValue]], tolerance: float, load_before: float
) -> tuple[str, ...]:
    notes = [
        "tokens/s: median over rounds; ours / it: median over rounds of the ratio within a round.",
        "hecate keeps freed memory in the process (hecate/train/host_memory.py), as its trainer "
        "always does; peers run with malloc as it is.",
        "DeepSpeed's MoE layer, told to drop no token, pads every expert to the fullest one.",
    ]
    if load_before > 1:
        notes.append(
            f"the machine was busy before this began (load average {load_before:.1f}): only the "
            "ratios mean anything."
        )
    for row in rows:
        if row.get("same_curve") is False:
            notes.append(
                f"{row['model']} {row['layout']}: the losses of {row['contender']} differ by up to "
                f"{row['loss_difference']:.1e}, more than {tolerance:.0e}."
            )
    return tuple(notes)
