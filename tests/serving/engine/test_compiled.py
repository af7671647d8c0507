"""The compiled forward pass computes what the model's own code does, whatever shares the batch."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from served import served_model
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from serving.engine.batch import Piece
from serving.engine.compiled import PROJECTIONS, CompiledForward, fastest_forward
from serving.engine.forward import Forward, HuggingFaceForward
from serving.engine.kernels.library import kernels
from serving.engine.loading import adopt
from serving.memory.kv import PagedKV

BLOCK = 8
POSITIONS = 256

_DENSE: dict[str, dict[str, object]] = {
    "llama": {"attention_bias": True},
    "mistral": {"sliding_window": 37},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"num_key_value_heads": 4, "head_dim": 64},
}
FAMILIES = ("mixtral", "qwen3_moe", "olmoe", *_DENSE)


def _model(family: str, dtype: torch.dtype) -> PreTrainedModel:
    if family not in _DENSE:
        return served_model(family).to(dtype)
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 300,
        "hidden_size": 128,
        "intermediate_size": 224,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "max_position_embeddings": POSITIONS,
    }
    config = AutoConfig.for_model(family, **{**sizes, **_DENSE[family]})
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(torch.randn(tensor.shape) * 0.1 + ("norm" in name))
    return model.eval()


def _kv(model: PreTrainedModel) -> PagedKV:
    return PagedKV(
        adopt(model), num_blocks=128, block_tokens=BLOCK, dtype=model.dtype, device=model.device
    )


def _steps(vocabulary: int) -> list[tuple[list[Piece], list[int]]]:
    """Prompts whole and in chunks, then decoding beside a chunk, then decoding alone."""
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(0, vocabulary, (5, 240), generator=generator).tolist()
    order = torch.randperm(128, generator=generator).tolist()  # blocks lie anywhere
    blocks = [order[i * 25 : (i + 1) * 25] for i in range(5)]

    def step(*cuts: tuple[int, int, int]) -> list[Piece]:
        return [Piece(tokens[s][a:b], a, blocks[s][: -(-b // BLOCK)]) for s, a, b in cuts]

    return [
        (step((0, 0, 1), (1, 0, 150), (2, 0, 70), (3, 0, 7)), [0, 1, 3]),
        (step((0, 1, 2), (1, 150, 151), (3, 7, 8), (2, 70, 180), (4, 0, 3)), [0, 1, 2, 3, 4]),
        (step(*((s, n, n + 1) for s, n in enumerate((2, 151, 180, 8, 3)))), [0, 1, 2, 3, 4]),
        (step((4, 4, 60)), []),
        (step((4, 60, 61)), [0]),
    ]


def _logits(forward: Forward, vocabulary: int) -> torch.Tensor:
    return torch.cat([forward(pieces, sampled) for pieces, sampled in _steps(vocabulary)]).float()


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_the_models_own(family: str) -> None:
    model = _model(family, torch.float32)
    V = model.config.vocab_size
    expected = _logits(HuggingFaceForward(model, _kv(model)), V)
    got = _logits(CompiledForward(model, _kv(model), positions=POSITIONS, threads=3), V)
    assert got.shape == expected.shape == (14, V)
    assert float((got - expected).abs().max() / expected.abs().max()) < 1e-4


@pytest.mark.parametrize("family", ["mistral", "qwen3_moe", "olmoe"])
def test_bfloat16_is_as_near_to_float32_as_the_models_own(family: str) -> None:
    model = _model(family, torch.bfloat16)
    V = model.config.vocab_size
    own = _logits(HuggingFaceForward(model, _kv(model)), V)
    got = _logits(CompiledForward(model, _kv(model), positions=POSITIONS, threads=3), V)
    model = model.float()
    exact = _logits(HuggingFaceForward(model, _kv(model)), V)
    errors = [
        (torch.log_softmax(logits, -1) - torch.log_softmax(exact, -1)).abs().mean()
        for logits in (got, own)
    ]
    assert float(errors[0]) < 1.2 * float(errors[1])


@pytest.mark.parametrize("family", ["qwen3_moe", "qwen3"])
def test_what_is_added_after_projections_is_as_if_weights_were_changed(family: str) -> None:
    """A change of every projection's weights, added as its product with what the weights read."""
    model = _model(family, torch.float32)
    config = model.config
    V, K = config.vocab_size, getattr(config, "num_experts_per_tok", 1)
    forward = CompiledForward(model, _kv(model), positions=POSITIONS, threads=2)
    changes: dict[tuple[int, str], torch.Tensor] = {}
    with torch.no_grad():
        for number, layer in enumerate(model.base_model.layers):  # type: ignore[union-attr]
            attention, mlp = layer.self_attn, layer.mlp
            for name, weights in {
                "qkv": [p.weight for p in (attention.q_proj, attention.k_proj, attention.v_proj)],
                "out": [attention.o_proj.weight],
                "gate_up": [mlp.experts.gate_up_proj]
                if hasattr(mlp, "experts")
                else [mlp.gate_proj.weight, mlp.up_proj.weight],
                "down": [
                    mlp.experts.down_proj if hasattr(mlp, "experts") else mlp.down_proj.weight
                ],
            }.items():
                deltas = [torch.randn(weight.shape) * 0.03 for weight in weights]
                for weight, delta in zip(weights, deltas, strict=True):
                    weight += delta
                changes[number, name] = torch.cat(deltas)
    expected = _logits(HuggingFaceForward(model, _kv(model)), V)

    def add(layer: int, name: str) -> None:
        b, delta = forward.buffers, changes[layer, name]
        T = forward.tokens
        if name in ("qkv", "out"):
            x, y = (b.normed_TD, b.qkv_T) if name == "qkv" else (b.attended_TN, b.hidden_TD)
            y[:T] += x[:T] @ delta.T
            return
        N, width = delta.shape[-2:]
        if delta.dim() == 2:
            x, y = b.normed_TD[:T], b.up_R[: T * N].view(T, N)
            if name == "down":
                x, y = b.act_RF[: T * width].view(T, width), b.hidden_TD[:T]
            y += x @ delta.T
            return
        R = T * K
        x = b.normed_TD[(b.order_R[:R] // K).long()]
        y = b.up_R[: R * N].view(R, N)
        if name == "down":
            x, y = b.act_RF[: R * width].view(R, width), b.pairs_RD[:R]
        for expert, (first, last) in enumerate(b.offsets_E1.unfold(0, 2, 1).tolist()):
            y[first:last] += x[first:last] @ delta[expert].T

    class Added:
        projections = PROJECTIONS

        def __init__(self, after: Callable[[int, str], None]) -> None:
            self.after = after
            self.ready: list[tuple[int, str]] = []

        def before(self, layer: int, projection: str) -> None:
            self.ready.append((layer, projection))

    forward.late = added = Added(add)
    got = _logits(forward, V)
    assert float((got - expected).abs().max() / expected.abs().max()) < 1e-4

    def fails(layer: int, name: str) -> None:
        raise KeyError(name)

    every = PROJECTIONS[:2] if K > 1 else PROJECTIONS  # of experts only what comes after is told
    assert added.ready[: 2 * len(every)] == [(0, name) for name in every] + [
        (1, name) for name in every
    ]
    forward.late = Added(fails)
    with pytest.raises(KeyError, match="qkv"):
        _logits(forward, V)


@pytest.mark.parametrize(
    ("block_ids", "said"),
    [((3,), "9 tokens of a sequence in 1 blocks of 8"), ((3, 128), "blocks 3 to 128 of a pool")],
)
def test_blocks_that_are_not_there_are_refused(block_ids: tuple[int, ...], said: str) -> None:
    model = _model("qwen3", torch.float32)
    forward = CompiledForward(model, _kv(model), positions=POSITIONS, threads=1)
    with pytest.raises(IndexError, match=said):
        forward([Piece([1] * 9, 0, block_ids)], [0])


def test_a_family_that_kernels_do_not_know_runs_as_it_did(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = served_model("gemma2")
    with caplog.at_level(logging.WARNING):
        forward = fastest_forward(model, adopt(model), _kv(model), positions=POSITIONS)
    assert isinstance(forward, HuggingFaceForward)
    assert "the family gemma2" in caplog.text


def test_without_a_compiler_the_models_own_code_runs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", "")
    kernels.cache_clear()
    model = served_model("qwen3_moe")
    with caplog.at_level(logging.WARNING):
        forward = fastest_forward(model, adopt(model), _kv(model), positions=POSITIONS)
    assert isinstance(forward, HuggingFaceForward)
    assert "there is no g++ here" in caplog.text
