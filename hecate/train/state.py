"""The trainer's state as one flat dict of named tensors, for saving and for loading in place.

Dense parameters and their moments go by their transformers names, experts and theirs by (layer,
expert id): nothing is named by a rank, so another world size finds what it needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hecate.checkpoint.averaged import average_key, average_weight
from hecate.checkpoint.names import dense_key, expert_key, optimizer_key, rng_key
from hecate.checkpoint.store import CheckpointStore
from hecate.fssdp.shards import ExpertShard
from hecate.train.build import Trainer
from hecate.train.dense import saved_buffers
from hecate.train.moments import MOMENTS, moments_of


def save_state(trainer: Trainer, rank: int) -> dict[str, torch.Tensor]:
    """All that this rank has to save; collective."""
    own = model_state(trainer) | optimizer_state(trainer) | rng_state(rank)
    return own | trainer.backend.saved(moments=False) | trainer.backend.saved(moments=True)


def load_state(
    store: CheckpointStore,
    path: Path,
    trainer: Trainer,
    random: dict[str, torch.Tensor],
    *,
    updates: int,
) -> None:
    """Fill the trainer, and ``random``, from the checkpoint at ``path``, of ``updates`` steps."""
    backend = trainer.backend
    theirs = backend.unfilled(moments=False) | backend.unfilled(moments=True)
    store.load(path, model_state(trainer) | optimizer_state(trainer) | theirs | random)
    set_optimizer_step(trainer.optimizer, updates)
    trainer.step.updates = updates
    backend.restore(theirs, step=updates)
    trainer.experts.refresh()


def updates_of(meta: Mapping[str, Any]) -> int:
    """How many steps a checkpoint's moments have seen: all, where it does not say."""
    return int(meta.get("updates", meta["step"]))


def model_state(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Weights and buffers under their checkpoint keys; views of the trainer's own tensors.

    Where adapters train beside a frozen model, adapters alone: the rest is in ``model.path``.
    What a backend steps by itself is in its own ``saved``.
    """
    adapted = any(shard.frozen is not None for shard in trainer.experts.shards)
    state = {
        dense_key(name): parameter.detach()
        for name, parameter in trainer.dense.items()
        if parameter.requires_grad or not adapted
    }
    for name, buffer in () if adapted else saved_buffers(trainer.model):
        state[dense_key(name)] = buffer
    for shard in trainer.experts.shards:
        state.update(_rows(shard, shard.parameter.detach()))
    return state


def load_average(
    store: CheckpointStore, path: Path, trainer: Trainer, meta: Mapping[str, Any]
) -> None:
    """Fill the model with the average of weights that the checkpoint at ``path`` keeps.

    Buffers, which have none, are as saved. Raises ``CheckpointError`` where it keeps none.
    """
    weight = average_weight(path, meta)
    buffers = {dense_key(name) for name, _ in saved_buffers(trainer.model)}
    state = {
        key if key in buffers else average_key(key): tensor
        for key, tensor in model_state(trainer).items()
    }
    store.load(path, state)
    for key, tensor in state.items():
        if key not in buffers:
            tensor.div_(weight)
    trainer.experts.refresh()


def optimizer_state(trainer: Trainer) -> dict[str, torch.Tensor]:
    """The moments of every parameter under their checkpoint keys, made (as zeros) if not there."""
    state: dict[str, torch.Tensor] = {}
    dense = {id(parameter): name for name, parameter in trainer.dense.items()}
    shards = {id(shard.parameter): shard for shard in trainer.experts.shards}
    for parameter, names in _optimized(trainer.optimizer):
        moments = moments_of(trainer.optimizer, parameter, names)
        for moment in names:
            if id(parameter) in dense:
                key = dense_key(dense[id(parameter)])
                state[optimizer_key(key, moment)] = moments[moment]
            else:
                rows = _rows(shards[id(parameter)], moments[moment])
                state.update({optimizer_key(key, moment): row for key, row in rows.items()})
    return state


def set_optimizer_step(optimizer: torch.optim.Optimizer, step: int) -> None:
    """Tell the optimizer how many steps its moments have seen (AdamW's bias correction)."""
    for parameter, names in _optimized(optimizer):
        moments_of(optimizer, parameter, names)["step"].fill_(float(step))


def rng_state(rank: int) -> dict[str, torch.Tensor]:
    """This rank's random state on the CPU, as what dropout and its like draw from."""
    return {rng_key(rank): torch.get_rng_state()}


def restore_rng(state: dict[str, torch.Tensor], rank: int) -> None:
    torch.set_rng_state(state[rng_key(rank)])


def _rows(shard: ExpertShard, table_eC: torch.Tensor) -> dict[str, torch.Tensor]:
    """One chunk for each owned expert, views of ``[e, C]``."""
    return {
        expert_key(shard.layer.name, expert_id): table_eC[row]
        for row, expert_id in enumerate(shard.expert_ids)
    }


def _optimized(
    optimizer: torch.optim.Optimizer,
) -> Iterator[tuple[nn.Parameter, Sequence[str]]]:
    """Each parameter, and the names of what is kept of it."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            yield parameter, group.get("moments", MOMENTS)
