"""Our trainer on a rank, and the reference, on the same few steps: what parity tests compare."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from reference import Batch, Outcome, WideFloats, train_reference
from scripted import Restless
from toy_models import toy_config

from hecate.data import MicroBatch
from hecate.fssdp.apply import even_placements
from hecate.fssdp.config import ExpertsConfig
from hecate.fssdp.routing import RouterConfig
from hecate.mesh import ParallelContext
from hecate.models.build import ModelConfig
from hecate.train.build import build_trainer
from hecate.train.config import RunConfig, TrainConfig
from hecate.train.dense import DenseConfig, named_dense, saved_buffers
from hecate.train.optim import OptimizerConfig, ScheduleConfig
from hecate.train.router_health import RouterTally

ROW_TOKENS = 24
STEPS = 5


@dataclass(frozen=True)
class Case:
    family: str = "qwen3_moe"
    dtype: str = "float64"
    accumulation: int = 1
    checkpointing: bool = False
    balance_loss: float = 0.02
    z_loss: float = 0.001
    bias_update_rate: float = 0.0
    rows: int = 5
    learning_rate: float = 1e-3
    experts: int = 0
    one_token: bool = False
    attention: str = "auto"
    tied: bool = False
    restless: bool = False
    policy: str = "fssdp"
    rematerialize: bool = False
    dense: DenseConfig = DenseConfig()
    unlabelled: int = 0  # of the rows, the last ones
    muon: bool = False


def optimizer_of(case: Case) -> OptimizerConfig:
    muon = {"kind": "muon", "muon": {"dtype": "masters"}} if case.muon else {}
    return OptimizerConfig(learning_rate=case.learning_rate, weight_decay=0.1, **muon)


def sizes_of(case: Case) -> dict[str, Any]:
    experts = {"num_experts": case.experts} if case.experts else {}
    config = toy_config(case.family, **experts).to_diff_dict()
    for key in ("model_type", "transformers_version", "architectures", "dtype"):
        config.pop(key, None)
    config["tie_word_embeddings"] = case.tied
    return config


def global_batches(case: Case) -> list[list[Batch]]:
    """Packed rows of random documents from a fixed seed: the same on every rank."""
    generator = torch.Generator().manual_seed(7)
    steps = []
    for _ in range(STEPS):
        micro_batches = []
        for _ in range(case.accumulation):
            ids = torch.randint(2, 128, (case.rows, ROW_TOKENS), generator=generator)
            if case.one_token:
                ids.fill_(5)
            positions, labels = torch.empty_like(ids), ids.roll(-1, 1)
            for row in range(case.rows):
                start = 0
                for length in document_lengths(row):
                    positions[row, start : start + length] = torch.arange(length)
                    labels[row, start + length - 1] = -100
                    start += length
            labels[case.rows - case.unlabelled :] = -100
            micro_batches.append((ids, labels, positions))
        steps.append(micro_batches)
    return steps


def document_lengths(row: int) -> tuple[int, ...]:
    return ((24,), (10, 14), (1, 2, 21), (12, 12))[row % 4]


def rows_of(rank: int, world_size: int, rows: int) -> range:
    """An unequal split: the first ranks take one row more."""
    share, more = divmod(rows, world_size)
    start = rank * share + min(rank, more)
    return range(start, start + share + (rank < more))


def train_on_rank(ctx: ParallelContext, case: Case) -> Outcome:
    config = RunConfig(
        name="parity",
        seed=3,
        model=ModelConfig(family=case.family, sizes=sizes_of(case), attention=case.attention),
        router=RouterConfig(
            balance_loss=case.balance_loss,
            z_loss=case.z_loss,
            bias_update_rate=case.bias_update_rate,
        ),
        train=TrainConfig(
            steps=STEPS,
            batch_sequences=case.rows * case.accumulation,
            accumulation=case.accumulation,
            dtype=case.dtype,
            activation_checkpointing=case.checkpointing,
            clip_norm=0.5,
        ),
        dense=case.dense,
        optimizer=optimizer_of(case),
        schedule=ScheduleConfig(kind="constant"),
        experts=ExpertsConfig(
            policy=case.policy,
            rematerialize=case.rematerialize,
            costs={"slot_s": 1.0, "copy_s": 1e-6},  # a copy pays as soon as it saves one slot
        ),
        data={"sequence_tokens": ROW_TOKENS},
    )
    outcome = Outcome()
    wide = WideFloats() if case.dtype == "float64" else contextlib.nullcontext()
    with wide:
        trainer = build_trainer(
            config,
            ctx,
            vocab_size=128,
            phase=lambda name: contextlib.nullcontext(),
            policy=Restless() if case.restless else None,
        )
        own = rows_of(ctx.rank, ctx.world_size, case.rows)
        lengths = tuple(length for row in own for length in document_lengths(row))
        rows = slice(own.start, own.stop)

        zero: dict[str, torch.Tensor] = {}

        def keep_first_gradients(*_: Any) -> None:
            if not outcome.gradients:
                outcome.gradients = _gradients(trainer, ctx)
                zero.update(_zero_gradients(trainer, ctx))

        trainer.optimizer.register_step_pre_hook(keep_first_gradients)
        for number, micro_batches in enumerate(global_batches(case)):
            batches = [
                MicroBatch(ids[rows], labels[rows], positions[rows], lengths)
                for ids, labels, positions in micro_batches
            ]
            result = trainer.step.run(number, batches)
            if number == 0:  # undo the clipping that came before the optimizer's step
                scale = min(1.0, 0.5 / (result.grad_norm + 1e-6))
                outcome.gradients = {n: g / scale for n, g in outcome.gradients.items()} | zero
            outcome.losses.append(result.loss)
            outcome.auxiliary.append(result.auxiliary_loss)
            outcome.norms.append(result.grad_norm)
            outcome.counts.append(result.counts_YE.tolist())
            slots = sum(ids.numel() for ids, _, _ in micro_batches)
            everything = [slots * trainer.model.config.num_experts_per_tok] * len(trainer.layers)
            assert result.counts_YE.sum(1).tolist() == everything
            assert result.experts.computed_slots.sum(1).tolist() == everything
    outcome.parameters = _parameters(trainer, ctx)
    if case.restless and ctx.world_size > 1:
        assert trainer.experts.owners != even_placements(trainer.layers, ctx.world_size)
        assert trainer.experts.materializer.copies > 0
    return outcome


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _experts(trainer: Any, ctx: ParallelContext, of: Any) -> dict[str, torch.Tensor]:
    """Every expert's tensors, stacked under transformers' names, from all ranks."""
    whole = {}
    for layer, shard in zip(trainer.layers, trainer.experts.shards, strict=True):
        table = torch.zeros(layer.num_experts, layer.layout.numel, dtype=shard.parameter.dtype)
        chunks = of(shard)
        if shard.expert_ids and chunks is not None:
            table[list(shard.expert_ids)] = chunks.detach().cpu()
        torch.distributed.all_reduce(table, group=ctx.groups.control)
        for name, view in layer.layout.views(table).items():
            whole[f"{layer.name}.{name}"] = view.clone()
    return whole


def _gradients(trainer: Any, ctx: ParallelContext) -> dict[str, torch.Tensor]:
    dense = {
        name: _whole(parameter.grad).clone().cpu()
        for name, parameter in trainer.dense.items()
        if parameter.grad is not None
    }
    return dense | _experts(trainer, ctx, lambda shard: shard.parameter.grad)


def _zero_gradients(trainer: Any, ctx: ParallelContext) -> dict[str, torch.Tensor]:
    """The dense gradients that DeepSpeed holds, whole: its means made sums, not clipped yet."""
    if trainer.dense:
        return {}
    from deepspeed.utils import safe_get_full_grad

    return {
        name: (safe_get_full_grad(parameter) * ctx.world_size).clone()
        for name, parameter in named_dense(trainer.model)
    }


def _masters(trainer: Any) -> dict[str, torch.Tensor]:
    if trainer.dense:
        return trainer.dense
    from deepspeed.utils import safe_get_full_fp32_param

    return {n: safe_get_full_fp32_param(p) for n, p in named_dense(trainer.model)}


def _parameters(trainer: Any, ctx: ParallelContext) -> dict[str, torch.Tensor]:
    dense = {n: _whole(p).detach().clone().cpu() for n, p in _masters(trainer).items()}
    buffers = {n: b.clone().cpu() for n, b in saved_buffers(trainer.model)}
    return dense | buffers | _experts(trainer, ctx, lambda shard: shard.parameter)


def reference_of(case: Case) -> Outcome:
    sizes: dict[str, object] = {"num_experts": case.experts} if case.experts else {}
    config = toy_config(case.family, tie_word_embeddings=case.tied, **sizes)
    wide = WideFloats() if case.dtype == "float64" else contextlib.nullcontext()
    with wide:
        return train_reference(
            config,
            global_batches(case),
            seed=3,
            dtype=torch.float64 if case.dtype == "float64" else torch.float32,
            learning_rate=case.learning_rate,
            weight_decay=0.1,
            clip_norm=0.5,
            balance_loss=case.balance_loss,
            z_loss=case.z_loss,
            bias_update_rate=case.bias_update_rate,
            sigmoid=case.family == "deepseek_v3",
            muon=case.muon,
        )


def assert_equal(ours: Outcome, reference: Outcome, tolerance: float, parameters: float) -> None:
    torch.testing.assert_close(ours.losses, reference.losses, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(ours.auxiliary, reference.auxiliary, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(ours.norms, reference.norms, rtol=tolerance, atol=tolerance)
    assert ours.counts == reference.counts
    assert_same_health(ours, reference)
    assert reference.gradients.keys() <= ours.gradients.keys()
    for name, gradient in reference.gradients.items():
        got = ours.gradients[name].to(gradient.dtype)
        scale = gradient.abs().max().clamp(min=1e-3)
        assert (got - gradient).abs().max() <= tolerance * scale, f"gradient of {name}"
    for name, value in reference.parameters.items():
        if name.endswith("inv_freq"):
            continue
        got = ours.parameters[name].to(value.dtype)
        assert (got - value).abs().max() <= parameters, f"parameter {name}"


def assert_same_health(ours: Outcome, reference: Outcome) -> None:
    """Both figures of a whole run from the reference's counts, written out without our code."""
    total_YE = torch.tensor(reference.counts).sum(0).double()
    share_YE = total_YE / total_YE.sum(1, keepdim=True)
    nats_Y = -torch.xlogy(share_YE, share_YE).sum(1)
    tally = RouterTally([total_YE.shape[1]] * total_YE.shape[0])
    for counts_YE in ours.counts:
        tally.add(torch.tensor(counts_YE))
    figures = tally.figures()
    assert figures["router/dead_experts"] == (total_YE == 0).sum(1).tolist()
    assert figures["router/entropy"] == pytest.approx(
        (nats_Y / math.log(total_YE.shape[1])).tolist(), abs=1e-12
    )


def assert_near(ours: Outcome, reference: Outcome, case: Case) -> None:
    """bf16 holds 8 bits: losses within 1 %, and masters move as far as AdamW's 5 steps allow."""
    torch.testing.assert_close(ours.losses, reference.losses, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(ours.norms, reference.norms, rtol=5e-2, atol=1e-2)
    for name, value in reference.parameters.items():
        if name in ours.parameters:
            moved = (ours.parameters[name].to(value.dtype) - value).abs().max()
            assert moved <= 2 * STEPS * case.learning_rate, name
