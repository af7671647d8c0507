"""``hecate bench fssdp``: FSSDP, its rivals, outside peers and the ceiling under replayed loads.

All strategies of a row live in the same two processes and take each step in turn. What is compared
is the ratio within a round, which a machine that slows down leaves as it is. The trace's choices
stand in for the routers'; everything else is a whole training step.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from pydantic import JsonValue
from rich.console import Console

from hecate.bench.crew import crew_of, usable_cores
from hecate.bench.margins import Standing, against_bound, rows_of, summarise
from hecate.bench.report import BenchOptions, Report
from hecate.bench.sparse_gather import FRACTION, NUM_CHUNKS
from hecate.bench.standings import (
    HALF,
    MOST,
    OPTIMIZER,
    QUICK,
    SEED,
    TITLES,
    WHOLE,
    Found,
    Pace,
    Setting,
    Stages,
)
from hecate.bench.strategies import CEILING, EVERYONE, OURS
from hecate.bench.worker import do_tasks
from hecate.bench.workloads import DEMO, TWO_RANKS

TRACES = ("balanced", "hot_1.5", "hot_1.9", "rotating", "burst", "one_hot", "idle", "real")
COLUMNS = {
    "model": "model",
    "trace": "trace",
    "strategy": "strategy",
    "ms": "ms/step",
    "ceiling_share": "of ceiling",
    "ours_over_it": "ours / it",
    "ours_over_it_quartiles": "quartiles",
    "imbalance_given": "given max/mean",
    "imbalance": "computed",
    "copies": "copies/step",
    "slot_mib": "slots MiB",
    "status": "status",
}


def bench_fssdp(options: BenchOptions) -> Report:
    """Both models under all traces. Raises ``ContenderError`` when a rank fails."""
    load = os.getloadavg()[0]
    setting = Setting(
        models=(HALF, MOST),
        traces={HALF.name: TRACES, MOST.name: ("hot_1.9",) if options.quick else TRACES},
        recorded=DEMO,
        names=EVERYONE,
        dtype=options.dtype,
    )
    pace = QUICK if options.quick else WHOLE
    return report_of(measure(setting, pace, Console(stderr=True)), setting, pace, load)


def measure(setting: Setting, pace: Pace, console: Console) -> Found:
    """Run everything on one pair of ranks; they are gone at the end."""
    with tempfile.TemporaryDirectory(prefix="hecate-bench-") as temporary:
        folder = Path(temporary)
        with crew_of(
            "fssdp",
            do_tasks,
            TWO_RANKS,
            cores=usable_cores(),
            folder=folder,
            timeout_s=300,
            seed=SEED,
            keep_freed_memory=True,
        ) as crew:
            return Stages(crew, setting, pace, folder, console).run()


def report_of(found: Found, setting: Setting, pace: Pace, load_before: float) -> Report:
    """The report of what ``measure`` found; ``load_before``: the machine's load average then."""
    first = setting.models[0].name
    gathers: list[dict[str, JsonValue]] = [
        {"chunk_kib": size // 1024, **against_bound(taken, FRACTION)}
        for size, taken in found.sparse_gathers.items()
    ]
    summary = summarise(found.standings, model=first, ours=OURS, ceiling=CEILING)
    summary |= {
        "remat_slowdown": found.remat_slowdown,
        "remat_extra_layers": found.remat_extra_layers,
        "sparse_gather_vs_bound": max(float(str(gather["vs_bound"])) for gather in gathers),
        "hidden_gather_fraction": found.hidden_fraction,
    }
    rows = [
        row
        for standing in found.standings
        for row in rows_of(standing, TITLES, ours=OURS, ceiling=CEILING)
    ]
    settings: dict[str, JsonValue] = {
        "dtype": setting.dtype,
        "seed": SEED,
        "optimizer": OPTIMIZER.model_dump(mode="json"),
        "clip_norm": 1.0,
        "layout": f"{TWO_RANKS.world_size} processes x {TWO_RANKS.threads} thread, each on a core",
        "load_average_before": round(load_before, 2),
        "pace": asdict(pace),
        "moe_share": _shares(found.standings),
        "models": {
            work.name: {
                "sizes": dict(work.sizes),
                "sequence_tokens": work.sequence_tokens,
                "tokens_per_rank": work.tokens_per_step // TWO_RANKS.world_size,
            }
            for work in setting.models
        },
        "sparse_gathers": list[JsonValue](gathers),
        "hidden_gather": dict(found.hidden_ms),
        "rematerialization": dict(found.remat_ms),
        "peers": dict(found.peer_settings),
    }
    return Report(
        "fssdp", settings, COLUMNS, tuple(rows), summary, _notes(found, gathers, load_before)
    )


def _shares(standings: Sequence[Standing]) -> dict[str, JsonValue]:
    return {s.model: round(s.moe_share, 3) for s in standings if s.moe_share}


def _notes(
    found: Found, gathers: Sequence[Mapping[str, JsonValue]], load_before: float
) -> tuple[str, ...]:
    shares = ", ".join(f"{model} {share}" for model, share in _shares(found.standings).items())
    notes = [
        "ms/step and ratios: medians over rounds; a round is a step, or a whole period of loads "
        "that move. of ceiling: the ceiling's time over its own.",
        "the ceiling routes every token evenly and trains no real model; it is no rival.",
        f"MoE share of the ceiling's step (without: experts passed by): {shares}.",
        "DeepSpeed and FSDP2 run the transformers model, whose dense part is slower than ours; "
        "DeepSpeed pads every expert to the fullest one, so that no token is dropped.",
        "all strategies have the trainer's malloc settings, peers too.",
        *(
            f"sparse gather of one in {FRACTION} of {NUM_CHUNKS} chunks of {g['chunk_kib']} KiB: "
            f"{g['sparse_ms']:.2f} ms ({g['sparse']}); dense {g['dense_ms']:.2f} ms "
            f"({g['dense']}), launch {g['launch_ms']:.2f} ms."
            for g in gathers
        ),
        "gathers: " + ", ".join(f"{n} {ms:.1f} ms" for n, ms in found.hidden_ms.items()) + ".",
        "copies: " + ", ".join(f"{n} {ms:.1f} ms" for n, ms in found.remat_ms.items()) + ".",
    ]
    if load_before > 1:
        notes.append(
            f"the machine was busy before this began (load average {load_before:.1f}): only the "
            "ratios mean anything."
        )
    return tuple(notes)
