"""A training run from its configuration to its last checkpoint: what ``hecate train`` does."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from hecate.checkpoint.agreement import together
from hecate.checkpoint.base import require_same_base
from hecate.checkpoint.export import export_run
from hecate.checkpoint.folder import newest_checkpoint
from hecate.checkpoint.names import rng_key
from hecate.checkpoint.store import CheckpointStore
from hecate.config import dump_config
from hecate.data import (
    Fit,
    Progress,
    TokenizedCorpus,
    TrainStream,
    check_vocabulary,
    fit_rows,
    load_corpus,
    open_tokens,
    prepare_tokenizer,
    progress_bars,
    quiet,
)
from hecate.data.tokenizer import num_token_ids
from hecate.errors import CheckpointError, ConfigError
from hecate.fssdp.measure import measured_costs
from hecate.mesh import ParallelContext, Rendezvous, open_mesh, sum_over
from hecate.models.build import hf_config
from hecate.planner.policies.protocol import Reckoning
from hecate.train.adapters import share_of
from hecate.train.build import Trainer, build_trainer
from hecate.train.config import RunConfig
from hecate.train.dense import DTYPES
from hecate.train.evaluate import yardsticks
from hecate.train.footprint.record import MemoryRecord
from hecate.train.host_memory import FreedMemory, give_back_freed, keep_freed_memory
from hecate.train.loads import FILE, LoadsHeader, LoadsRecorder
from hecate.train.logging import Run, open_sinks
from hecate.train.loop import TrainingLoop
from hecate.train.memory import resident_bytes
from hecate.train.metrics import PhaseClock
from hecate.train.peak import measure_peak_flops
from hecate.train.reshard import restore_placement
from hecate.train.starts import record_start
from hecate.train.state import load_state, restore_rng, rng_state, updates_of
from hecate.train.stopping import StopRequest


@dataclass(frozen=True)
class TrainResult:
    """Where a run lies and how it ended; ``stopped``: on request, before its last step."""

    folder: Path
    steps: int
    held_out: dict[str, float]
    stopped: bool = False


def train(config: RunConfig, *, origins: Mapping[str, str], resume: str = "none") -> TrainResult:
    """Train as ``config`` says, on every rank of the job that launched this process.

    ``origins`` says where each value came from (see ``load_config``); it is logged with the run.
    ``resume``: ``auto`` continues from the run's newest checkpoint if it has one, a path from that
    one, ``none`` starts anew. Raises ``UserError`` for what the user can mend and
    ``CollectiveFailure`` when another rank died.
    """
    keep_freed_memory()
    with (
        open_mesh(config.mesh, Rendezvous.from_environment(os.environ)) as ctx,
        ExitStack() as stack,
    ):
        console = Console(stderr=False)
        folder = Path(config.folder, config.name)
        with together(ctx.groups.control, f"preparing the run folder {folder}"):
            if ctx.rank == 0:
                _write_config(config, folder, resume)
        tokenizer, corpus = _data(config, ctx, folder, console)
        phases = PhaseClock(time.perf_counter)
        process_bytes = resident_bytes()
        trainer = build_trainer(
            config, ctx, vocab_size=num_token_ids(tokenizer), phase=phases.phase
        )
        text = trainer.model.config.get_text_config()
        if text.eos_token_id is None:  # from scratch: an export then knows where a text ends
            text.eos_token_id = tokenizer.eos_token_id
        stream = TrainStream(
            corpus.train,
            sequence_tokens=config.data.sequence_tokens,
            batch_sequences=config.train.batch_sequences,
            accumulation=config.train.accumulation,
            seed=config.seed,
            rank=ctx.rank,
            world_size=ctx.world_size,
            too_long=config.data.too_long,
        )
        if ctx.rank == 0 and config.lora.active:
            share = share_of(trainer.model, trainer.experts)
            console.print(str(share), highlight=False, soft_wrap=True)
        if ctx.rank == 0 and config.data.kind == "chat":
            _tell_how_full(console, config, stream)
        store = CheckpointStore(
            folder / "checkpoints",
            group=ctx.groups.checkpoint,
            rank=ctx.rank,
            keep=config.checkpoint.keep,
        )
        first_step = _resume(resume, config, ctx, trainer, stream, store)
        if ctx.rank == 0:
            record_start(
                folder,
                first_step,
                node_of_rank=ctx.node_of_rank,
                device=ctx.device,
                time_s=time.time(),
            )
        settings = {key: f"{value}" for key, value in origins.items()}
        run = Run(
            folder,
            config.name,
            config.train.steps,
            resumed_step=first_step,
            settings=config.model_dump(mode="json") | {"origins": settings},
        )
        process_bytes -= resident_bytes()
        sinks = open_sinks(config.logging, run, rank=ctx.rank)
        process_bytes += resident_bytes()
        memory = MemoryRecord.before_training(
            config, ctx, vocab_size=num_token_ids(tokenizer), process_bytes=process_bytes
        )
        memory.announce(partial(console.print, highlight=False, soft_wrap=True))
        for sink in sinks:
            stack.callback(sink.close)
        header = _loads_header(config, trainer, ctx, first_step)
        loads = None
        if ctx.rank == 0 and config.logging.loads:
            loads = LoadsRecorder(folder / FILE, header)
            stack.callback(loads.close)
        stop = StopRequest()
        loop = TrainingLoop(
            config,
            ctx,
            trainer,
            stream,
            corpus,
            store,
            sinks,
            phases,
            loads,
            FreedMemory(resident_bytes, give_back_freed),
            clock=time.perf_counter,
            peak_flops=_peak_flops(config, ctx),
            stop=stop,
        )
        with stop.listening():
            end = loop.run(first_step)
        stack.close()
        memory.conclude(folder, partial(console.print, highlight=False, soft_wrap=True))
        stopped = end.steps < config.train.steps
        if ctx.rank == 0 and config.lora.active and not stopped:
            export_run(folder, folder / "adapter")
        if ctx.rank == 0:
            if stopped:
                _report_stop(console, folder, end.steps, config.train.steps)
            else:
                _report(console, folder, end.held_out | yardsticks(corpus.facts))
        return TrainResult(folder, end.steps, end.held_out, stopped)


def _write_config(config: RunConfig, folder: Path, resume: str) -> None:
    started = newest_checkpoint(folder / "checkpoints") is not None
    if resume == "none" and started:
        raise CheckpointError(
            f"{folder} already holds checkpoints of a run",
            got="--resume none",
            expected="a new run in a folder of its own",
            fix="pass --resume auto to continue it, choose another name (--set name=...), or "
            "remove the folder",
        )
    folder.mkdir(parents=True, exist_ok=True)
    if not started:  # of an attempt that came to nothing, perhaps with another configuration
        shutil.rmtree(folder / "tokenizer", ignore_errors=True)
    partial = folder / ".config.yaml.partial"
    partial.write_text(dump_config(config), encoding="utf-8")
    partial.replace(folder / "config.yaml")


def _data(
    config: RunConfig, ctx: ParallelContext, folder: Path, console: Console
) -> tuple[PreTrainedTokenizerBase, TokenizedCorpus]:
    """The run's tokenizer and tokens; every rank ends alike if one of them cannot."""
    data = config.data
    if config.model.path and not data.tokenizer.path and _has_tokenizer(config.model.path):
        update = {"path": config.model.path}
        data = data.model_copy(update={"tokenizer": data.tokenizer.model_copy(update=update)})
    with _progress(console, shown=ctx.rank == 0) as progress:
        with together(ctx.groups.control, "reading the corpus"):
            corpus = load_corpus(data)
            tokenizer = prepare_tokenizer(data, corpus, folder / "tokenizer", progress=progress)
            check_vocabulary(
                tokenizer, hf_config(config.model, vocab_size=num_token_ids(tokenizer)).vocab_size
            )
            tokens = open_tokens(corpus, tokenizer, data, progress=progress)
            fits = [
                fit_rows(split, data.sequence_tokens, data.too_long)
                for split in (tokens.train, tokens.held_out)
            ]
    if ctx.rank == 0:
        _tell_what_is_cut(console, config, fits)
    return tokenizer, tokens


def _tell_what_is_cut(console: Console, config: RunConfig, fits: Sequence[Fit]) -> None:
    """Say how many conversations do not take part whole."""
    dropped, cut = sum(fit.dropped for fit in fits), sum(fit.truncated for fit in fits)
    if dropped or cut:
        total = dropped + sum(len(fit.documents) for fit in fits)
        console.print(
            f"of {total:,} conversations, {dropped + cut:,} are longer than "
            f"data.sequence_tokens = {config.data.sequence_tokens}: {dropped:,} left out, "
            f"{cut:,} cut to it",
            highlight=False,
            soft_wrap=True,
        )


def _tell_how_full(console: Console, config: RunConfig, stream: TrainStream) -> None:
    console.print(
        f"conversations fill {stream.sequences_per_epoch:,} sequences of "
        f"{config.data.sequence_tokens} tokens to {stream.fullness:.0%}",
        highlight=False,
        soft_wrap=True,
    )


def _has_tokenizer(path: str) -> bool:
    return Path(path).expanduser().joinpath("tokenizer_config.json").is_file()


@contextmanager
def _progress(console: Console, *, shown: bool) -> Iterator[Progress]:
    if not shown:
        yield quiet
        return
    with progress_bars(console) as progress:
        yield progress


def _resume(
    resume: str,
    config: RunConfig,
    ctx: ParallelContext,
    trainer: Trainer,
    stream: TrainStream,
    store: CheckpointStore,
) -> int:
    """Load what ``resume`` names into the trainer; the step to go on with."""
    path: Path | None = None
    if resume != "none":
        path = store.newest() if resume == "auto" else Path(resume)
    if path is None:
        _seed_rng(config, 0, ctx.rank)
        return 0
    with together(ctx.groups.control, f"reading checkpoint {path}"):
        meta = store.read_meta(path)
        if meta["step"] > config.train.steps:
            raise ConfigError(
                f"{path} is past the end of the run",
                got=f"step {meta['step']} with train.steps {config.train.steps}",
                fix="raise train.steps",
            )
        stream.load_state_dict(meta["data"])
        if config.lora.active:
            require_same_base(path, meta, Path(config.model.path).expanduser())
    same_world = meta["world_size"] == ctx.world_size
    saved = [layer["num_experts"] for layer in meta["layers"]]
    if saved == [layer.num_experts for layer in trainer.layers]:  # else the load says what is wrong
        restore_placement(
            meta.get("experts", {}), trainer.experts, trainer.optimizer, ctx, same_world=same_world
        )
    random = rng_state(ctx.rank) if same_world else {}
    load_state(store, path, trainer, random, updates=updates_of(meta))
    trainer.step.guard.restore(meta.get("guard", {}))
    if same_world:
        restore_rng({rng_key(ctx.rank): random[rng_key(ctx.rank)]}, ctx.rank)
    else:
        _seed_rng(config, meta["step"], ctx.rank)
    return int(meta["step"])


def _loads_header(
    config: RunConfig, trainer: Trainer, ctx: ParallelContext, first_step: int
) -> LoadsHeader:
    """What a replay of the run needs; collective, since a policy that asks no costs left them
    unmeasured."""
    experts = trainer.experts
    shards, policy = experts.shards, experts.policy
    compute_dtype, dtype = shards[0].compute_dtype, shards[0].parameter.dtype
    costs = measured_costs(
        config.experts.costs,
        experts.modules[0],
        experts.layers[0] if shards[0].layer.layout.numel else trainer.layers[0],
        ctx,
        dtype=dtype,
        compute_dtype=compute_dtype,
        folder=experts.costs_folder,
    )
    return LoadsHeader(
        step=first_step,
        owners=tuple(own.owners for own in experts.owners),
        window=experts.loads.state(),
        gather_bytes=tuple(shard.gather_bytes for shard in shards),
        reduce_bytes=tuple(shard.reduce_bytes for shard in shards),
        costs=policy.costs if isinstance(policy, Reckoning) else costs.step,
        topology=costs.topology,
        experts=config.experts,
    )


def _seed_rng(config: RunConfig, step: int, rank: int) -> None:
    """Let each rank draw numbers (dropout, router noise) of its own, the same in every run."""
    torch.manual_seed(config.seed * 1_000_003 + step * 1009 + rank)


def _peak_flops(config: RunConfig, ctx: ParallelContext) -> float:
    own = measure_peak_flops(ctx.device, DTYPES[config.train.dtype])
    total = sum_over(ctx.groups.control, torch.tensor([own], dtype=torch.float64))
    return float(total)


def _report(console: Console, folder: Path, figures: Mapping[str, float]) -> None:
    console.print(
        f"held-out loss {figures['loss']:.3f} nats per token "
        f"(unigram entropy {figures['unigram_entropy']:.3f}, "
        f"{figures['unigram_entropy'] - figures['loss']:.3f} below it)\n"
        f"held-out bits per byte {figures['bits_per_byte']:.3f} "
        f"(xz -9 needs {figures['xz_bits_per_byte']:.3f})\n"
        f"the run lies in {folder}",
        highlight=False,
    )


def _report_stop(console: Console, folder: Path, done: int, steps: int) -> None:
    console.print(
        f"stopped on request after step {done} of {steps}, which is saved in {folder}: "
        "--resume auto goes on from there",
        highlight=False,
        soft_wrap=True,
    )
