"""LoRA over N ranks equals PEFT in a single process: losses, gradients, the adapters at the end."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lora import load_peft, write_base
from peft import get_peft_model_state_dict
from ranks import run_ranks
from reference import WideFloats
from safetensors.torch import save_file
from scripted import Restless

from hecate.data import MicroBatch
from hecate.mesh import ParallelContext
from hecate.models.lora import peft_format as peft
from hecate.train.build import Trainer, build_trainer
from hecate.train.config import RunConfig

ROWS, ROW_TOKENS, STEPS = 5, 16, 4
RATE = 5e-3


@dataclass(frozen=True)
class Case:
    family: str = "qwen3_moe"
    targets: tuple[str, ...] = ("attention", "experts")
    accumulation: int = 1
    restless: bool = False
    checkpointing: bool = False

    def config(self, base: Path) -> RunConfig:
        return RunConfig(
            name="lora",
            seed=3,
            model={"path": str(base)},
            lora={"rank": 3, "alpha": 12, "targets": self.targets},
            router={"balance_loss": 0.0},
            train={
                "steps": STEPS,
                "batch_sequences": ROWS * self.accumulation,
                "accumulation": self.accumulation,
                "dtype": "float64",
                "clip_norm": 0.5,
                "activation_checkpointing": self.checkpointing,
            },
            optimizer={"learning_rate": RATE, "weight_decay": 0.1},
            schedule={"kind": "constant"},
            experts={"costs": {"slot_s": 1.0, "copy_s": 1e-6}},
            data={"sequence_tokens": ROW_TOKENS},
        )


@dataclass
class Outcome:
    """By PEFT's names: what was trained from, the first step's gradients, the adapters at the end.

    ``moved``: bytes of each step that frozen experts, adapters and gradients took; ``kept``: bytes
    of frozen experts that this rank keeps of others.
    """

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    initial: dict[str, torch.Tensor] = field(default_factory=dict)
    gradients: dict[str, torch.Tensor] = field(default_factory=dict)
    adapters: dict[str, torch.Tensor] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    moved: list[tuple[int, int, int]] = field(default_factory=list)
    kept: int = 0
    chunk: tuple[int, int] = (0, 0)


def batches(accumulation: int) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(2, 128, (STEPS, accumulation, ROWS, ROW_TOKENS), generator=generator)
    labels = ids.roll(-1, -1)
    labels[..., -1] = -100
    labels[:, :, 0, :5] = -100
    return [list(zip(i, t, strict=True)) for i, t in zip(ids, labels, strict=True)]


def in_peft_names(trainer: Trainer, ctx: ParallelContext, *, grad: bool) -> dict[str, torch.Tensor]:
    """Every adapter (or its gradient) whole, from all ranks."""
    found = {}
    for name, parameter in trainer.dense.items():
        value = parameter.grad if grad else parameter.detach()
        if parameter.requires_grad:
            whole = value.full_tensor() if hasattr(value, "full_tensor") else value
            found[peft.linear_key(name)] = whole.clone()
        else:
            assert parameter.grad is None, name
    for layer, shard in zip(trainer.experts.layers, trainer.experts.shards, strict=True):
        table = torch.zeros(layer.num_experts, layer.layout.numel, dtype=torch.float64)
        own = shard.parameter.grad if grad else shard.parameter.detach()
        if shard.expert_ids and layer.projections:
            table[list(shard.expert_ids)] = own
        torch.distributed.all_reduce(table, group=ctx.groups.control)
        views = layer.layout.views(table)
        for projection, half in peft.halves(layer):
            key = peft.expert_key(layer, projection, half)
            found[key] = peft.stacked(half, list(views[f"{projection}.{half}"])).clone()
    return found


def train_on_rank(ctx: ParallelContext, case: Case, base: Path) -> Outcome:
    outcome = Outcome()
    with WideFloats():
        trainer = build_trainer(
            case.config(base),
            ctx,
            vocab_size=128,
            phase=lambda _: contextlib.nullcontext(),
            policy=Restless() if case.restless else None,
        )
        experts = trainer.experts
        outcome.initial = in_peft_names(trainer, ctx, grad=False)
        linears = [n.removesuffix(".lora_A.weight") for n in trainer.dense if ".lora_A." in n]
        outcome.settings = peft.adapter_config(
            case.config(base).lora, str(base), linears, experts.layers
        )
        outcome.chunk = (experts.shards[0].frozen_bytes, experts.shards[0].gather_bytes)
        own = list(range(ROWS))[ctx.rank :: ctx.world_size]

        def keep(*_: object) -> None:
            outcome.gradients = outcome.gradients or in_peft_names(trainer, ctx, grad=True)

        trainer.optimizer.register_step_pre_hook(keep)
        for number, micro_batches in enumerate(batches(case.accumulation)):
            positions = torch.arange(ROW_TOKENS).expand(len(own), -1)
            result = trainer.step.run(
                number,
                [
                    MicroBatch(ids[own], labels[own], positions, (ROW_TOKENS,) * len(own))
                    for ids, labels in micro_batches
                ],
            )
            if number == 0:  # undo the clipping that came before the optimizer's step
                scale = min(1.0, 0.5 / (result.grad_norm + 1e-6))
                outcome.gradients = {n: g / scale for n, g in outcome.gradients.items()}
            outcome.losses.append(result.loss)
            outcome.norms.append(result.grad_norm)
            step = result.experts
            outcome.moved.append((step.frozen_bytes, step.gathered_bytes, step.reduced_bytes))
    outcome.adapters = in_peft_names(trainer, ctx, grad=False)
    outcome.kept = experts.materializer.kept_bytes
    states = [s for s in trainer.optimizer.state.values() if s]
    trained = sum(p.numel() for g in trainer.optimizer.param_groups for p in g["params"])
    adapters = sum(p.numel() for p in trainer.dense.values() if p.requires_grad)
    assert trained == adapters + sum(shard.parameter.numel() for shard in experts.shards)
    assert len(states) <= len([p for g in trainer.optimizer.param_groups for p in g["params"]])
    return outcome


def train_by_peft(case: Case, base: Path, started: Outcome, folder: Path) -> Outcome:
    """From the very adapters that our run began with, as a folder that PEFT loads."""
    folder.mkdir()
    save_file(
        {name: t.contiguous() for name, t in started.initial.items()}, folder / peft.WEIGHTS_FILE
    )
    (folder / peft.CONFIG_FILE).write_text(json.dumps(started.settings))
    outcome = Outcome()
    with WideFloats():
        model = load_peft(base, folder, torch.float64, trains=True).train()
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            [p for _, p in named], lr=RATE, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1
        )
        outcome.initial = dict(get_peft_model_state_dict(model))
        outcome.initial = {n: t.clone() for n, t in outcome.initial.items()}
        for micro_batches in batches(case.accumulation):
            count = sum(int((labels >= 0).sum()) for _, labels in micro_batches)
            total = 0.0
            for ids, labels in micro_batches:
                logits = model(input_ids=ids, use_cache=False).logits
                loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
                (loss / count).backward()
                total += float(loss.detach())
            if not outcome.gradients:
                outcome.gradients = {n.replace(".default", ""): p.grad.clone() for n, p in named}
            norm = torch.nn.utils.clip_grad_norm_([p for _, p in named], 0.5)
            optimizer.step()
            optimizer.zero_grad()
            outcome.losses.append(total / count)
            outcome.norms.append(float(norm))
        outcome.adapters = dict(get_peft_model_state_dict(model))
    return outcome


QWEN = Case()
CASES = [
    pytest.param(QWEN, (1, 2, 3), id="qwen3_moe"),
    pytest.param(Case(restless=True, accumulation=2), (2, 3), id="restless"),
    pytest.param(Case("gpt_oss", ("experts",), checkpointing=True), (1, 2), id="gpt_oss"),
    pytest.param(Case("deepseek_v3"), (2,), id="deepseek_v3"),
    pytest.param(Case(targets=("attention",)), (1, 2), id="attention-alone"),
]


@pytest.mark.parametrize(("case", "worlds"), CASES)
def test_adapters_train_as_peft_trains_them(case: Case, worlds: tuple[int, ...], tmp_path: Path):
    base = write_base(tmp_path / "base", case.family)
    reference: Outcome | None = None
    for world_size in worlds:
        ranks = run_ranks(train_on_rank, world_size, case, base)
        if reference is None:
            reference = train_by_peft(case, base, ranks[0], tmp_path / "adapter")
        assert reference.initial.keys() == ranks[0].initial.keys()
        for rank in ranks:
            assert rank.losses == pytest.approx(reference.losses, rel=1e-9)
            assert rank.norms == pytest.approx(reference.norms, rel=1e-8)
            for ours, theirs in (
                (rank.initial, reference.initial),
                (rank.gradients, reference.gradients),
                (rank.adapters, reference.adapters),
            ):
                assert ours.keys() == theirs.keys()
                for name, value in theirs.items():
                    torch.testing.assert_close(
                        ours[name], value.double(), rtol=1e-7, atol=1e-8, msg=name
                    )
    assert any(name.endswith("lora_B.weight") and t.any() for name, t in reference.adapters.items())


def test_a_frozen_expert_is_brought_once_and_only_adapters_travel_then(tmp_path: Path):
    base = write_base(tmp_path / "base", "qwen3_moe")
    ranks = run_ranks(train_on_rank, 2, QWEN, base)
    frozen, gathered, reduced = zip(*ranks[0].moved, strict=True)
    chunk, adapters = ranks[0].chunk
    assert chunk > 5 * adapters  # else nothing would be saved
    assert sum(map(bool, gathered)) >= 2 and gathered == reduced
    copies = sum(gathered) // adapters
    assert sum(frozen) == sum(rank.kept for rank in ranks)  # nothing came twice
    assert 0 < sum(frozen) // chunk < copies
