"""Beginning a run, anew or from a checkpoint: its folder, its weights, its place in the data."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from hecate.checkpoint.agreement import together
from hecate.checkpoint.base import require_same_base
from hecate.checkpoint.folder import newest_checkpoint
from hecate.checkpoint.names import rng_key
from hecate.checkpoint.store import CheckpointStore
from hecate.config import dump_config
from hecate.data import TrainStream
from hecate.errors import CheckpointError, ConfigError
from hecate.files import replace
from hecate.mesh import ParallelContext
from hecate.train.build import Trainer
from hecate.train.config import RunConfig
from hecate.train.reshard import restore_placement
from hecate.train.state import load_state, restore_rng, rng_state, updates_of


def begin_folder(config: RunConfig, folder: Path, resume: str) -> None:
    """Write the configuration into the run's ``folder``; by one rank.

    Raises ``CheckpointError`` where a new run would overwrite another one's checkpoints.
    """
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
    replace(folder / "config.yaml", dump_config(config))


def resume_from(
    resume: str,
    config: RunConfig,
    ctx: ParallelContext,
    trainer: Trainer,
    stream: TrainStream,
    store: CheckpointStore,
) -> int:
    """Load what ``resume`` names into the trainer; collective.

    Returns how many steps were done: the run goes on with that step, the first being 0.
    """
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


def _seed_rng(config: RunConfig, step: int, rank: int) -> None:
    """Let each rank draw numbers (dropout, router noise) of its own, the same in every run."""
    torch.manual_seed(config.seed * 1_000_003 + step * 1009 + rank)
