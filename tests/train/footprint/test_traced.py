"""Activations found on shapes alone, against those of real passes of the same families."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
from toy_models import FAMILIES, toy_config

from hecate.errors import ModelError
from hecate.mesh import MeshConfig, ParallelContext, Rendezvous, open_mesh
from hecate.models.attention import PACKED, document_masks
from hecate.models.build import ModelConfig, meta_model
from hecate.models.families import find_moe_layers
from hecate.train.build import Trainer, build_trainer
from hecate.train.config import RunConfig, TrainConfig
from hecate.train.footprint.live import LiveBytes
from hecate.train.footprint.parts import PassBytes
from hecate.train.footprint.traced import MicroBatchShape, traced_pass

B, S = 4, 64


@pytest.fixture(scope="module")
def ctx() -> Iterator[ParallelContext]:
    with open_mesh(MeshConfig(device="cpu"), Rendezvous.from_environment({})) as context:
        yield context


def built(ctx: ParallelContext, family: str, *, checkpointing: bool) -> Trainer:
    fields = toy_config(family).to_diff_dict()
    for key in ("model_type", "transformers_version", "architectures", "dtype"):
        fields.pop(key, None)
    config = RunConfig(
        name="traced",
        model=ModelConfig(family=family, sizes=fields),
        train=TrainConfig(steps=1, batch_sequences=B, activation_checkpointing=checkpointing),
        data={"sequence_tokens": S},
        router={"balance_loss": 0.0},
    )
    return build_trainer(config, ctx, vocab_size=128, phase=lambda _: contextlib.nullcontext())


def real_pass(trainer: Trainer) -> PassBytes:
    """What a forward and a backward pass of the trunk keep and take, gradients aside."""
    model = trainer.model
    for parameter in trainer.dense.values():
        parameter.grad = torch.zeros_like(parameter)
    shards = trainer.experts.shards
    known = [*model.parameters(), *model.buffers(), *(p.grad for p in trainer.dense.values())]
    known += [t for shard in shards for t in (*shard.weights.values(), *shard.grads.values())]
    ids_BS = torch.randint(128, (B, S), generator=torch.Generator().manual_seed(3))
    positions_BS = torch.arange(S).expand(B, S).contiguous()
    inputs = {"position_ids": positions_BS, "use_cache": False}
    trunk = getattr(model, model.base_model_prefix)
    trainer.experts.begin_step(0, 1)
    with LiveBytes(known) as live:  # type: ignore[arg-type]
        ids_BS, inputs["position_ids"] = ids_BS.clone(), positions_BS.clone()
        if model.config._attn_implementation == PACKED:
            inputs["document_lengths"] = (S,) * B
        else:
            inputs["attention_mask"] = document_masks(model, positions_BS)
        hidden_BSD = trunk(input_ids=ids_BS, **inputs).last_hidden_state
        kept, forward_peak = live.now_bytes, live.peak_bytes
        live.start_anew()
        hidden_BSD.backward(torch.empty_like(hidden_BSD))
        return PassBytes(kept, forward_peak, live.peak_bytes)


def traced(family: str, *, checkpointing: bool) -> PassBytes:
    config = toy_config(family)
    model = meta_model(config)
    layers = find_moe_layers(model)
    slots = B * S * config.num_experts_per_tok
    return traced_pass(
        model,
        layers,
        MicroBatchShape(
            B, S, (slots,) * len(layers), tuple(layer.num_experts for layer in layers), False
        ),
        device=torch.device("cpu"),
        dtype=torch.float32,
        compute_dtype=torch.float32,
        checkpointing=checkpointing,
        router_losses=False,
    )


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"gpt_oss"}))
def test_shapes_alone_tell_what_the_passes_of_each_family_take(family, checkpointing, ctx):
    real = real_pass(built(ctx, family, checkpointing=checkpointing))
    found = traced(family, checkpointing=checkpointing)
    assert found.kept_bytes == pytest.approx(real.kept_bytes, rel=0.02)
    assert found.forward_peak_bytes == pytest.approx(real.forward_peak_bytes, rel=0.1)
    assert found.backward_peak_bytes == pytest.approx(real.backward_peak_bytes, rel=0.1)
    if checkpointing:
        whole = traced(family, checkpointing=False)
        assert found.kept_bytes < whole.kept_bytes / 2


def test_what_is_kept_is_what_autograd_saves(ctx):
    """Saved-tensor hooks see the same storages, but for the result itself."""
    trainer = built(ctx, "qwen3_moe", checkpointing=False)
    own = {p.untyped_storage().data_ptr() for p in trainer.model.parameters()}
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage
        return tensor

    positions_BS = torch.arange(S).expand(B, S).contiguous()
    trainer.experts.begin_step(0, 1)
    trunk = getattr(trainer.model, trainer.model.base_model_prefix)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        trunk(
            input_ids=torch.zeros(B, S, dtype=torch.int64),
            position_ids=positions_BS,
            use_cache=False,
            document_lengths=(S,) * B,
        )
    saved_bytes = sum(storage.nbytes() for storage in storages.values())
    kept = traced("qwen3_moe", checkpointing=False).kept_bytes
    result_bytes = B * S * trainer.model.config.hidden_size * 4
    assert saved_bytes + result_bytes == pytest.approx(kept, rel=0.03)


def test_more_rows_of_a_busier_rank_take_more():
    config = toy_config("qwen3_moe")

    def kept(rows: int) -> int:
        model = meta_model(config)
        layers = find_moe_layers(model)
        batch = MicroBatchShape(B, S, (rows,) * len(layers), (3,) * len(layers), True)
        return traced_pass(
            model,
            layers,
            batch,
            device=torch.device("cpu"),
            dtype=torch.float32,
            compute_dtype=torch.float32,
            checkpointing=False,
            router_losses=True,
        ).kept_bytes

    # of each row: what came, its weight, gate and up, what the gate gave, what they make
    D, F = 64, 32
    assert kept(600) - kept(500) == 2 * 100 * 4 * (D + 1 + 2 * F + F + F) + 2 * 100 * 8


def test_a_family_whose_masks_ask_for_values_is_refused_by_name():
    with pytest.raises(ModelError, match="activations of GptOssForCausalLM cannot be estimated"):
        traced("gpt_oss", checkpointing=False)
