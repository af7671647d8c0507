"""A step on packed conversations equals plain transformers on each of them by itself.

Ranks and micro-batches have unequal numbers of targets, one rank none at all: the loss is the mean
over the targets of the step, never a mean of means.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ranks import run_ranks
from reference import WideFloats, reference_model
from toy_models import toy_config

from hecate.data import TokenStore, TrainStream
from hecate.fssdp.routing import RouterConfig
from hecate.mesh import ParallelContext
from hecate.models.build import ModelConfig
from hecate.train.build import build_trainer
from hecate.train.config import RunConfig, TrainConfig
from hecate.train.optim import ScheduleConfig

ROW_TOKENS = 24
LENGTHS = (6, 24, 12, 20, 9, 4, 14, 12, 7, 23, 8)
"""Best fit makes them 6 rows: 24, 23, 20 + 4, 14 + 9, 12 + 12 and 8 + 7 + 6."""
ROWS = 6


def conversations() -> TokenStore:
    """Random tokens; of the one of 24 none is learnt, of the one of 23 all but the first are."""
    generator = torch.Generator().manual_seed(11)
    starts = np.cumsum([0, *LENGTHS])
    tokens = torch.randint(2, 128, (int(starts[-1]),), generator=generator)
    targets = (torch.rand(len(tokens), generator=generator) < 0.3).numpy()
    targets[starts[1] : starts[2]] = False
    targets[starts[9] : starts[10]] = True
    targets[starts[:-1]] = False
    return TokenStore("train", tokens.numpy().astype(np.uint16), starts, 0, "chats", targets)


@dataclass
class Stepped:
    """One rank's account of the step: its own targets by micro-batch, and what all ranks made."""

    targets: list[int]
    loss: float
    labels: int
    gradients: dict[str, torch.Tensor]


def step_on_rank(ctx: ParallelContext, accumulation: int) -> Stepped:
    sizes = toy_config("qwen3_moe").to_diff_dict()
    for key in ("model_type", "transformers_version", "architectures", "dtype"):
        sizes.pop(key, None)
    config = RunConfig(
        name="chats",
        seed=3,
        model=ModelConfig(family="qwen3_moe", sizes=sizes),
        router=RouterConfig(balance_loss=0.0),  # which would count padding
        train=TrainConfig(
            steps=1,
            batch_sequences=ROWS,
            accumulation=accumulation,
            dtype="float64",
            clip_norm=0.0,
        ),
        schedule=ScheduleConfig(kind="constant"),
        data={"sequence_tokens": ROW_TOKENS},
    )
    with WideFloats():
        trainer = build_trainer(
            config, ctx, vocab_size=128, phase=lambda _: contextlib.nullcontext()
        )
        stream = TrainStream(
            conversations(),
            sequence_tokens=ROW_TOKENS,
            batch_sequences=ROWS,
            accumulation=accumulation,
            seed=1,
            rank=ctx.rank,
            world_size=ctx.world_size,
            too_long="drop",
        )
        assert stream.sequences_per_epoch == ROWS
        gradients: dict[str, torch.Tensor] = {}

        def keep(*_: object) -> None:
            for name, parameter in trainer.dense.items():
                gradient = parameter.grad
                whole = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
                gradients[name] = whole.clone()
            for layer, shard in zip(trainer.layers, trainer.experts.shards, strict=True):
                for name, rows in layer.layout.views(shard.parameter.grad).items():
                    for expert_id, row in zip(shard.expert_ids, rows, strict=True):
                        gradients[f"{layer.name}.{name}.{expert_id}"] = row.clone()

        trainer.optimizer.register_step_pre_hook(keep)
        micro_batches = stream.next_step()
        result = trainer.step.run(0, micro_batches)
    targets = [int((batch.labels_BS >= 0).sum()) for batch in micro_batches]
    return Stepped(targets, result.loss, result.labels, gradients)


@pytest.fixture(scope="module")
def reference() -> tuple[float, int, dict[str, torch.Tensor]]:
    """Loss, targets and gradients of all conversations, each a sequence of its own."""
    store = conversations()
    with WideFloats():
        model = reference_model(toy_config("qwen3_moe"), 3, torch.float64)
        total = torch.zeros((), dtype=torch.float64)
        for begin, end in zip(store.starts[:-1], store.starts[1:], strict=True):
            ids = torch.from_numpy(store.tokens_T[begin:end].astype(np.int64))
            learnt = torch.from_numpy(store.targets_T[begin:end])[1:]
            logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1]
            total = total + F.cross_entropy(logits[learnt], ids[1:][learnt], reduction="sum")
        targets = int(store.targets_T.sum())
        (total / targets).backward()
    gradients: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        if ".experts." in name:
            gradients |= {f"{name}.{n}": row for n, row in enumerate(parameter.grad)}
        else:
            gradients[name] = parameter.grad
    return float(total.detach()) / targets, targets, gradients


@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 1), (1, 3), (2, 1), (2, 3), (3, 2)])
def test_each_target_counts_the_same_wherever_it_stands(reference, world_size, accumulation):
    loss, targets, gradients = reference
    ranks = run_ranks(step_on_rank, world_size, accumulation)
    counts = [count for rank in ranks for count in rank.targets]
    assert sum(counts) == targets
    if len(counts) == ROWS:
        assert 0 in counts and max(counts) == 22  # one row each: the silent one, the longest
    assert len(counts) == 1 or len(set(counts)) > 1
    own: dict[str, torch.Tensor] = {}
    for rank in ranks:
        assert (rank.loss, rank.labels) == (pytest.approx(loss, rel=1e-9), targets)
        own |= rank.gradients
    assert own.keys() == gradients.keys()
    for name, gradient in gradients.items():
        scale = float(gradient.abs().max().clamp(min=1e-3))
        torch.testing.assert_close(own[name], gradient, rtol=0, atol=1e-9 * scale, msg=name)
