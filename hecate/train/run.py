"""A training run from its configuration to its last checkpoint: what ``hecate train`` does."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from hecate.checkpoint.agreement import together
from hecate.checkpoint.export import export_run
from hecate.checkpoint.stages import Reached, unnoticed
from hecate.checkpoint.store import CheckpointStore
from hecate.mesh import ParallelContext, Rendezvous, naming, open_mesh, sum_over
from hecate.train.adapters import share_of
from hecate.train.build import Trainer, build_trainer
from hecate.train.chatter import warned_once
from hecate.train.config import RunConfig
from hecate.train.dense import DTYPES
from hecate.train.evaluate import yardsticks
from hecate.train.footprint.record import MemoryRecord
from hecate.train.host_memory import FreedMemory, give_back_freed, keep_freed_memory
from hecate.train.inputs import Inputs, read_inputs
from hecate.train.loop import TrainingLoop
from hecate.train.memory import resident_bytes
from hecate.train.metrics import PhaseClock
from hecate.train.mirrored import fetch_newest, mirrored
from hecate.train.notices import saying, silent, tell_result, tell_stop
from hecate.train.peak import measure_peak_flops
from hecate.train.profile import Recorder
from hecate.train.records import open_records
from hecate.train.resume import begin_folder, resume_from
from hecate.train.stopping import StopRequest
from hecate.train.watchdog import Watchdog


@dataclass(frozen=True)
class TrainResult:
    """Where a run lies and how it ended; ``stopped``: on request, before its last step."""

    folder: Path
    steps: int
    held_out: dict[str, float]
    stopped: bool = False


@dataclass(frozen=True)
class Launch:
    """How a launcher starts a run.

    ``origins`` says where each value of the configuration came from (see ``load_config``); it is
    logged with the run. ``resume``: ``auto`` continues from the run's newest checkpoint if it has
    one, a path from that one, ``none`` starts anew. ``cause``: why the launcher takes the run up
    again by itself, if it does. ``peak_flops`` of a rank, where that is known already (0: it is
    measured) and ``measured`` hears what it was. ``begins`` hears of each step (the first is 0) as
    it begins, ``saving`` how far each save has come.
    """

    origins: Mapping[str, str]
    resume: str = "none"
    cause: str = ""
    peak_flops: float = 0.0
    measured: Callable[[float], object] = lambda peak_flops: None
    begins: Callable[[int], object] = lambda step: None
    saving: Reached = unnoticed


def train(
    config: RunConfig,
    *,
    origins: Mapping[str, str],
    resume: str = "none",
    saving: Reached = unnoticed,
) -> TrainResult:
    """Train as ``config`` says, on every rank of the job that launched this process.

    SIGTERM and SIGUSR1 end it with a checkpoint. The rest is as in ``Launch`` and ``train_on``.
    """
    keep_freed_memory()
    with open_mesh(config.mesh, Rendezvous.from_environment(os.environ)) as ctx:
        return train_on(ctx, config, Launch(origins, resume, saving=saving), StopRequest())


def train_on(
    ctx: ParallelContext, config: RunConfig, launch: Launch, stop: StopRequest
) -> TrainResult:
    """Train as ``config`` says, together with the other ranks of ``ctx``.

    While it trains, ``stop`` listens. Raises ``UserError`` for what the user can mend and
    ``CollectiveFailure`` when another rank died.
    """
    console = Console(stderr=False)
    say = silent if ctx.rank else saying(console)
    folder = Path(config.folder, config.name)
    with naming("a collective", ctx.rank):  # of those that nobody names more closely
        with together(ctx.groups.control, f"preparing the run folder {folder}"):
            if ctx.rank == 0:
                begin_folder(config, folder, launch.resume)
        fetch_newest(config, folder, launch.resume, ctx.groups.control, say)
        with mirrored(config, folder, ctx.rank, say):
            return _train_in(folder, ctx, config, console, launch, stop)


def _train_in(
    folder: Path,
    ctx: ParallelContext,
    config: RunConfig,
    console: Console,
    launch: Launch,
    stop: StopRequest,
) -> TrainResult:
    say = silent if ctx.rank else saying(console)
    inputs = read_inputs(config, ctx, folder, console, say)
    watchdog = Watchdog(config.watchdog, ctx.rank, folder, clock=time.monotonic)
    phases = PhaseClock(time.perf_counter, watchdog.phase)
    process_bytes = resident_bytes()
    recorder = Recorder(config.profile, ctx, folder, phases.phase, say)
    trainer = _build(config, ctx, inputs, recorder)
    stream = inputs.stream(config, ctx, say)
    if config.lora.active:
        say(str(share_of(trainer.model, trainer.experts)))
    store = CheckpointStore(
        folder / "checkpoints",
        group=ctx.groups.checkpoint,
        rank=ctx.rank,
        keep=config.checkpoint.keep,
        reached=launch.saving,
    )
    first_step = resume_from(launch.resume, config, ctx, trainer, stream, store)
    with (
        warned_once(ctx.rank),
        open_records(
            config, ctx, trainer, folder, first_step, launch.origins, console, launch.cause
        ) as records,
    ):
        memory = MemoryRecord.before_training(
            config,
            ctx,
            vocab_size=inputs.vocab_size,
            process_bytes=process_bytes + records.sink_bytes,
        )
        if not launch.cause:  # else it was said, and time is short
            memory.announce(say)
        loop = TrainingLoop(
            config,
            ctx,
            trainer,
            stream,
            inputs.corpus,
            store,
            records.sinks,
            phases,
            records.loads,
            FreedMemory(resident_bytes, give_back_freed),
            clock=time.perf_counter,
            peak_flops=_peak_flops(config, ctx, launch),
            stop=stop,
            begins=_both(watchdog.step, launch.begins),
            recorder=recorder,
        )
        with stop.listening(), watchdog.watching():
            end = loop.run(first_step)
    memory.conclude(folder, say)
    stopped = end.steps < config.train.steps
    if stopped:
        tell_stop(say, folder, end.steps, config.train.steps)
    elif ctx.rank == 0:
        if config.lora.active:
            export_run(folder, folder / "adapter")
        tell_result(say, folder, end.held_out | yardsticks(inputs.corpus.facts))
    return TrainResult(folder, end.steps, end.held_out, stopped)


def _build(config: RunConfig, ctx: ParallelContext, inputs: Inputs, recorder: Recorder) -> Trainer:
    trainer = build_trainer(
        config,
        ctx,
        vocab_size=inputs.vocab_size,
        phase=recorder.phase,
        gathers_by=recorder.gathers,
        reductions_by=recorder.reductions,
    )
    text = trainer.model.config.get_text_config()
    if text.eos_token_id is None:  # from scratch: an export then knows where a text ends
        text.eos_token_id = inputs.tokenizer.eos_token_id
    return trainer


def _both(
    first: Callable[[int], object], second: Callable[[int], object]
) -> Callable[[int], object]:
    return lambda step: (first(step), second(step))


def _peak_flops(config: RunConfig, ctx: ParallelContext, launch: Launch) -> float:
    """Of all ranks together."""
    mean = launch.peak_flops
    if not mean:
        own = measure_peak_flops(ctx.device, DTYPES[config.train.dtype])
        total = sum_over(ctx.groups.control, torch.tensor([own], dtype=torch.float64))
        mean = float(total) / ctx.world_size
    launch.measured(mean)
    return mean * ctx.world_size
