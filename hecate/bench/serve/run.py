"""``hecate bench serve``: our engine beside vLLM, and what the stack around it costs."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import AutoConfig

from hecate.bench.crew import usable_cores
from hecate.bench.report import BenchOptions, Report, Row, require_known
from hecate.bench.serve.contender import Contender, vllm_python
from hecate.bench.serve.margins import (
    COLUMNS,
    OfflineCell,
    load_rows,
    offline_row,
    prefix_row,
    pressure_row,
    stack_rows,
    summary,
)
from hecate.bench.serve.models import MODELS, ServedModel, write_model
from hecate.bench.serve.offline import Cell, fastest_mode, rates
from hecate.bench.serve.online import Demand, Load, loads, prefix_gain, random_demand, trace_demand
from hecate.bench.serve.pressure import Pressure, under_pressure
from hecate.bench.serve.roofline import Machine, least_seconds, measure_machine, needs_of
from hecate.bench.serve.sides import NATIVE, VLLM, Setting, offline, online
from hecate.bench.serve.stack import FirstToken, Stack, hecate_serve, measure_stack
from serving.bench.traces import read_trace

Say = Callable[[str], None]
CONTEXT = 2560
SHORT = tuple(Cell(batch, 128, 64) for batch in (1, 16, 64))
LONG = tuple(Cell(batch, 512, 128) for batch in (1, 16, 64))
PARTS = ("offline", "stack", "loads", "pressure")
TRIAL = Cell(16, 128, 64)
PRESSED = Cell(24, 128, 256)
PRESSED_SHARE = 0.3


@dataclass(frozen=True)
class Pace:
    """How much is measured. ``online``: models that get open loops and the stack around them;
    ``requests``: of each open loop; ``modes``: whether vLLM's are tried or its default is taken;
    ``parts``: which of ``PARTS``."""

    models: tuple[str, ...]
    online: tuple[str, ...]
    cells: tuple[Cell, ...]
    rounds: int
    requests: int
    singles: int
    modes: bool
    parts: tuple[str, ...] = PARTS


WHOLE = Pace(tuple(MODELS), ("108m", "86m"), (*SHORT, *LONG), 5, 200, 40, True)
QUICK = Pace(("108m", "86m"), ("108m",), SHORT, 3, 48, 12, False)


@dataclass
class Found:
    """What was measured so far."""

    cells: list[OfflineCell]
    loads: list[tuple[str, Load]]
    stacks: list[tuple[str, list[Stack], FirstToken]]
    prefixes: list[tuple[str, float, float]]
    pressures: list[Pressure]


def run_bench(options: BenchOptions) -> Report:
    """What ``bench_serve`` promises."""
    console = Console(stderr=True)
    require_known("bench serve has no such model or part", options.only, (*MODELS, *PARTS))
    pace = QUICK if options.quick else WHOLE
    if models := tuple(name for name in options.only if name in MODELS):
        online_ones = tuple(name for name in models if name in pace.online)
        pace = replace(pace, models=models, online=online_ones)
    if parts := tuple(name for name in options.only if name in PARTS):
        pace = replace(pace, parts=parts)
    with tempfile.TemporaryDirectory(prefix="hecate-bench-serve-") as folder:
        return measure(options, pace, Path(folder), lambda line: console.print(line, markup=False))


def measure(options: BenchOptions, pace: Pace, folder: Path, say: Say) -> Report:
    traces = [read_trace(Path(path).expanduser()) for path in options.trace]
    python = vllm_python(options.vllm)
    dtype = getattr(torch, options.dtype)
    threads = len(usable_cores()) or 1
    machine = measure_machine(dtype, threads)
    say(
        f"{machine.flops_per_s / 1e9:,.0f} Gflop/s of matmul in {options.dtype}, "
        f"{machine.read_bytes_per_s / 2**30:.1f} GiB/s read"
    )
    found = Found([], [], [], [], [])
    settings: dict[str, Any] = {}
    notes: list[str] = []
    mode = ""
    for name in pace.models:
        model = MODELS[name]
        setting = Setting(
            folder=write_model(model, folder, context=CONTEXT, dtype=dtype),
            threads=threads,
            context=CONTEXT,
            sequences=64,
            kv_gib=2.0,
            dtype=options.dtype,
            python=python,
        )
        if python and pace.modes and not mode:
            mode = fastest_mode(setting, TRIAL, model.vocab_size, folder, say)
        setting = replace(setting, mode=mode or setting.mode)
        settings["native"] = setting.engine.model_dump(mode="json", exclude={"model"})
        if python:
            told = {key: value for key, value in setting.llm.items() if key != "model"}
            settings["vllm"] = {"arguments": told, "environment": dict(setting.vllm_environment)}
        if "offline" in pace.parts:
            _offline(model, setting, pace, machine, folder, found, say)
        if name in pace.online:
            demands = [random_demand(model.vocab_size)]
            demands += [trace_demand(trace, model.vocab_size) for trace in traces]
            notes += [demand.remark for demand in demands if demand.remark not in ("", *notes)]
            _online(model, setting, pace, demands, folder, found, say)
            if "pressure" in pace.parts:
                _pressed(model, setting, pace, folder, found, say)
    return report_of(options, pace, machine, settings, notes, found)


def _offline(
    model: ServedModel,
    setting: Setting,
    pace: Pace,
    machine: Machine,
    folder: Path,
    found: Found,
    say: Say,
) -> None:
    needs = needs_of(AutoConfig.from_pretrained(setting.folder), setting_bytes(setting))
    with ExitStack() as stack:
        contenders = {
            side: stack.enter_context(offline(side, setting, folder))[0]
            for side in ([NATIVE, VLLM] if setting.python else [NATIVE])
        }
        say(f"{model.title}: {' and '.join(contenders)} are ready")
        for cell, each in rates(pace.cells, contenders, pace.rounds, model.vocab_size, say).items():
            least_s = least_seconds(
                needs,
                machine,
                batch=cell.batch,
                prompt_tokens=cell.prompt_tokens,
                output_tokens=cell.output_tokens,
            )
            best = cell.batch * cell.output_tokens / least_s
            found.cells.append(OfflineCell(model.title, cell, each, best))


def _online(
    model: ServedModel,
    setting: Setting,
    pace: Pace,
    demands: list[Demand],
    folder: Path,
    found: Found,
    say: Say,
) -> None:
    """Parts in which requests come over time, to one engine of ours."""
    if not {"stack", "loads"} & set(pace.parts):
        return
    with ExitStack() as stack:
        native, _ = stack.enter_context(online(NATIVE, setting, folder))
        if "stack" in pace.parts:
            _stack(model, setting, pace, native, folder, found, say)
        if "loads" in pace.parts:
            contenders = {NATIVE: native}
            if setting.python:
                contenders[VLLM] = stack.enter_context(online(VLLM, setting, folder))[0]
            for demand in demands:
                for load in loads(demand, contenders, count=pace.requests, say=say):
                    found.loads.append((model.title, load))


def _stack(
    model: ServedModel,
    setting: Setting,
    pace: Pace,
    native: Contender,
    folder: Path,
    found: Found,
    say: Say,
) -> None:
    cold_s, warm_s = prefix_gain(native, model.vocab_size, rounds=5)
    found.prefixes.append((model.title, cold_s, warm_s))
    with hecate_serve(setting, folder) as url:
        stacks, first = measure_stack(
            native,
            url,
            model.vocab_size,
            batches=(16, 64),
            rounds=pace.rounds,
            singles=pace.singles,
            say=say,
        )
    found.stacks.append((model.title, stacks, first))


def _pressed(
    model: ServedModel, setting: Setting, pace: Pace, folder: Path, found: Found, say: Say
) -> None:
    needs = needs_of(AutoConfig.from_pretrained(setting.folder), setting_bytes(setting))
    pressure = under_pressure(
        model.title,
        PRESSED,
        setting,
        share=PRESSED_SHARE,
        kv_bytes=needs.kv_bytes,
        rounds=pace.rounds,
        vocabulary=model.vocab_size,
        folder=folder,
        say=say,
    )
    found.pressures.append(pressure)


def report_of(
    options: BenchOptions,
    pace: Pace,
    machine: Machine,
    settings: Mapping[str, Any],
    notes: list[str],
    found: Found,
) -> Report:
    rows: list[Row] = [offline_row(cell) for cell in found.cells]
    for title, load in found.loads:
        rows += load_rows(title, load)
    for title, stacks, first in found.stacks:
        rows += stack_rows(title, stacks, first)
    rows += [prefix_row(*prefix) for prefix in found.prefixes]
    rows += [pressure_row(pressure) for pressure in found.pressures]
    return Report(
        bench="serve",
        settings={
            "dtype": options.dtype,
            "quick": options.quick,
            "rounds": pace.rounds,
            "matmul_flops_per_s": machine.flops_per_s,
            "read_bytes_per_s": machine.read_bytes_per_s,
            **settings,
        },
        columns=COLUMNS,
        rows=tuple(rows),
        summary=summary(
            found.cells,
            [load for _, load in found.loads],
            [stack for _, stacks, _ in found.stacks for stack in stacks],
            [first for _, _, first in found.stacks],
            [(cold_s, warm_s) for _, cold_s, warm_s in found.prefixes],
            found.pressures,
        ),
        notes=(
            "tokens/s: of answers, all requests at once, random prompts, ends ignored; sides take "
            "turns, medians of rounds; latencies: the same requests at the same times, at "
            "shares of what the slower side sustains",
            f"{options.dtype}; the roofline is {machine.flops_per_s / 1e9:,.0f} Gflop/s and "
            f"{machine.read_bytes_per_s / 2**30:.1f} GiB/s, both measured here",
            *notes,
            *(f"{side}: {json.dumps(told)}" for side, told in settings.items()),
        ),
    )


def setting_bytes(setting: Setting) -> int:
    size: int = getattr(torch, setting.dtype).itemsize
    return size
