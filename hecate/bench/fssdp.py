"""``hecate bench fssdp``: FSSDP, its rivals, outside peers and the ceiling under replayed loads.

All strategies of a row live in the same two processes and take each step in turn. What is compared
is the ratio within a round, which a machine that slows down leaves as it is. The trace's choices
stand in for the routers'; everything else is a whole training step.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import JsonValue
from rich.console import Console

from hecate.bench.crew import crew_of, usable_cores
from hecate.bench.margins import Standing, against_bound, rows_of, summarise
from hecate.bench.report import BenchOptions, Report
from hecate.bench.routing_traces import PERIOD
from hecate.bench.sparse_gather import FRACTION, NUM_CHUNKS
from hecate.bench.standings import (
    HALF,
    MOST,
    OPTIMIZER,
    SEED,
    TITLES,
    Found,
    Part,
    Setting,
    Stages,
)
from hecate.bench.strategies import CEILING, EVERYONE, OURS, VARIANTS
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
    "rounds": "rounds",
    "imbalance_given": "given max/mean",
    "imbalance": "computed",
    "copies": "copies/step",
    "slot_mib": "slots MiB",
    "status": "status",
}


def bench_fssdp(options: BenchOptions) -> Report:
    """Both models under all traces. Raises ``ContenderError`` when a rank fails."""
    load = os.getloadavg()[0]
    setting = quick(options.dtype) if options.quick else whole(options.dtype)
    return report_of(measure(setting, Console(stderr=True)), setting, load)


def whole(dtype: str) -> Setting:
    """All rows of both models, in about 40 minutes."""
    half = Part(
        HALF,
        TRACES,
        EVERYONE,
        peer_traces=TRACES,
        stable_rounds=15,
        moving_rounds=3,
        peers_every=3,
        variant_traces=("hot_1.9", "rotating", "real"),
    )
    most = replace(
        half,
        work=MOST,
        peer_traces=("balanced", "hot_1.9"),
        stable_rounds=5,
        moving_rounds=1,
        variant_traces=(),
    )
    return Setting((half, most), recorded=DEMO, skipped=50, warm_up=2, repeats=30, dtype=dtype)


def quick(dtype: str) -> Setting:
    """Every summary key within ten minutes; of the second model the worst rows, without rivals."""
    half = Part(
        HALF,
        TRACES,
        EVERYONE,
        peer_traces=("balanced", "hot_1.9"),
        stable_rounds=5,
        moving_rounds=1,
        peers_every=5,
        variant_traces=("rotating",),
    )
    most = replace(
        half,
        work=MOST,
        traces=("hot_1.9", "rotating"),
        names=(OURS, "expert_parallel", CEILING),
        variant_traces=(),
    )
    return Setting((half, most), recorded=DEMO, skipped=50, warm_up=1, repeats=8, dtype=dtype)


def measure(setting: Setting, console: Console) -> Found:
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
            return Stages(crew, setting, folder, console).run()


def report_of(found: Found, setting: Setting, load_before: float) -> Report:
    """The report of what ``measure`` found; ``load_before``: the machine's load average then."""
    first = setting.parts[0].work.name
    gathers: list[dict[str, JsonValue]] = [
        {"chunk_kib": size // 1024, **against_bound(taken, FRACTION)}
        for size, taken in found.sparse_gathers.items()
    ]
    summary = summarise(found.standings, model=first, ours=OURS, ceiling=CEILING, variants=VARIANTS)
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
        "first_step": setting.first_step,
        "warm_up": setting.warm_up,
        "moe_share": _shares(found.standings),
        "models": {part.work.name: _model_settings(part) for part in setting.parts},
        "sparse_gathers": list[JsonValue](gathers),
        "hidden_gather": dict(found.hidden_ms),
        "rematerialization": dict(found.remat_ms),
        "peers": dict(found.peer_settings),
    }
    return Report(
        "fssdp", settings, COLUMNS, tuple(rows), summary, _notes(found, gathers, load_before)
    )


def _model_settings(part: Part) -> dict[str, JsonValue]:
    return {
        "sizes": dict(part.work.sizes),
        "vocab_size": part.work.vocab_size,
        "sequence_tokens": part.work.sequence_tokens,
        "tokens_per_rank": part.work.tokens_per_step // TWO_RANKS.world_size,
        "stable_rounds": part.stable_rounds,
        "moving_rounds": part.moving_rounds,
        "peers_every": part.peers_every,
    }


def _shares(standings: Sequence[Standing]) -> dict[str, JsonValue]:
    return {s.model: round(s.moe_share, 3) for s in standings if s.moe_share}


def _notes(
    found: Found, gathers: Sequence[Mapping[str, JsonValue]], load_before: float
) -> tuple[str, ...]:
    shares = ", ".join(f"{model} {share}" for model, share in _shares(found.standings).items())
    notes = [
        "ms/step and ratios: medians over rounds; a round is a step, or a whole period of "
        f"{PERIOD} steps where loads move. of ceiling: the ceiling's time over its own.",
        "the ceiling routes every token evenly and trains no real model; it is no rival.",
        f"MoE share of the ceiling's step (the rest: the same step without experts): {shares}.",
        "hot: one rank's experts, of the even partition, take its load; rotating, burst: half of "
        "one rank's, others in each period and layer, so that no placement that stays fits all.",
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
