"""The fused projection and cross-entropy against PyTorch's own, and against each family's head."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_models import FAMILIES, toy_model
from transformers import PreTrainedModel

from hecate.models.loss import CHUNK_TOKENS, IGNORED, CausalLoss, linear_cross_entropy


def problem(
    tokens: int, *, bias: bool = True, dtype: torch.dtype = torch.float64, ignored: float = 0.3
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """[hidden, weight(, bias)] with D = 6, V = 11, and labels of which some are ignored."""
    generator = torch.Generator().manual_seed(tokens)
    shapes = [(tokens, 6), (11, 6)] + [(11,)] * bias
    tensors = [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]
    labels = torch.randint(0, 11, (tokens,), generator=generator)
    labels[torch.rand(tokens, generator=generator) < ignored] = IGNORED
    return [t.requires_grad_() for t in tensors], labels


def ours(tensors: list[torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    hidden, weight, *bias = tensors
    return linear_cross_entropy(hidden, weight, bias[0] if bias else None, labels)


def plain(tensors: list[torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    hidden, weight, *bias = tensors
    logits = F.linear(hidden, weight, bias[0] if bias else None)
    return F.cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORED)


def test_by_hand():
    """Logits 0 and log 3: the probabilities are 1/4 and 3/4."""
    hidden = torch.tensor([[1.0], [1.0], [1.0]], dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([[0.0], [1.0986122886681098]], dtype=torch.float64, requires_grad=True)
    loss = linear_cross_entropy(hidden, weight, None, torch.tensor([0, IGNORED, 1]))
    assert loss.item() == pytest.approx(1.3862943611198906 + 0.2876820724517809)  # log 4 + log 4/3
    loss.backward()
    assert hidden.grad is not None and weight.grad is not None
    # d logits: (-3/4, 3/4), nothing, (1/4, -1/4)
    expected = [0.75 * 1.0986122886681098, 0, -0.25 * 1.0986122886681098]
    assert hidden.grad[:, 0].tolist() == pytest.approx(expected)
    assert weight.grad[:, 0].tolist() == pytest.approx([-0.5, 0.5])


@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize(
    "tokens", [1, CHUNK_TOKENS - 1, CHUNK_TOKENS, CHUNK_TOKENS + 1, 2 * CHUNK_TOKENS + 3]
)
def test_fp64_values_and_gradients_equal_pytorchs(tokens, bias):
    tensors, labels = problem(tokens, bias=bias)
    loss, expected = ours(tensors, labels), plain(tensors, labels)
    assert loss.dtype == torch.float64
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=1e-13)
    scale = 0.37  # what the loss is divided by afterwards
    got = torch.autograd.grad(loss * scale, tensors)
    want = torch.autograd.grad(expected * scale, tensors)
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def test_labels_that_are_all_ignored_cost_and_teach_nothing():
    tensors, labels = problem(CHUNK_TOKENS + 5)
    labels.fill_(IGNORED)
    loss = ours(tensors, labels)
    assert float(loss.detach()) == 0.0
    for grad in torch.autograd.grad(loss, tensors):
        assert torch.equal(grad, torch.zeros_like(grad))


def test_a_whole_ignored_chunk_between_others_changes_nothing_else():
    tensors, labels = problem(3 * CHUNK_TOKENS, ignored=0.0)
    labels[CHUNK_TOKENS : 2 * CHUNK_TOKENS] = IGNORED
    torch.testing.assert_close(ours(tensors, labels), plain(tensors, labels), rtol=1e-13, atol=0)
    grad = torch.autograd.grad(ours(tensors, labels), tensors[0])[0]
    assert torch.equal(grad[CHUNK_TOKENS : 2 * CHUNK_TOKENS], torch.zeros(CHUNK_TOKENS, 6).double())
    assert bool((grad[:CHUNK_TOKENS] != 0).all())


@settings(max_examples=25)
@given(tokens=st.integers(1, 40), ignored=st.floats(0, 1), scale=st.floats(-3, 3))
def test_it_equals_pytorchs_for_any_tokens(tokens, ignored, scale):
    tensors, labels = problem(tokens, ignored=ignored)
    got = torch.autograd.grad(scale * ours(tensors, labels), tensors)
    want = torch.autograd.grad(scale * plain(tensors, labels), tensors)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def test_extreme_logits_stay_finite():
    tensors, labels = problem(20)
    with torch.no_grad():
        tensors[0] *= 500
    loss = ours(tensors, labels)
    torch.testing.assert_close(loss, plain(tensors, labels))
    assert all(bool(grad.isfinite().all()) for grad in torch.autograd.grad(loss, tensors))


def test_bf16_sums_in_fp32_and_returns_gradients_in_bf16():
    tensors, labels = problem(CHUNK_TOKENS + 9, dtype=torch.bfloat16)
    wide = [t.detach().double().requires_grad_() for t in tensors]
    loss, expected = ours(tensors, labels), plain(wide, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=2e-3, atol=0)
    got = torch.autograd.grad(loss / 100, tensors)
    want = torch.autograd.grad(expected / 100, wide)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == torch.bfloat16
        assert (a.double() - b).abs().max() <= 1e-2 * b.abs().max()


def test_without_gradients_none_are_made():
    tensors, labels = problem(9)
    with torch.no_grad():
        loss = ours(tensors, labels)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, plain(tensors, labels).detach(), rtol=1e-13, atol=0)
    frozen = [t.detach() for t in tensors]
    assert not ours(frozen, labels).requires_grad


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2)], ids=str)
def test_each_tensor_may_be_the_only_one_that_learns(wanted):
    """A frozen trunk, a frozen head: what is left gets its own gradient."""
    tensors, labels = problem(9)
    tensors = [t.detach().requires_grad_(i in wanted) for i, t in enumerate(tensors)]
    learning = [tensors[i] for i in wanted]
    got = torch.autograd.grad(ours(tensors, labels), learning)
    want = torch.autograd.grad(plain(tensors, labels), learning)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def micro_batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, tuple[int, ...]]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(2, 128, (2, 12), generator=generator)
    labels = ids.roll(-1, 1)
    lengths = (5, 7, 12)
    positions = torch.cat([torch.arange(n) for n in lengths]).view(2, 12)
    labels[0, 4] = labels[0, 11] = labels[1, 11] = IGNORED
    return ids, labels, positions, lengths


def eager_model(family: str) -> PreTrainedModel:
    """In fp64, which no other experts implementation of transformers computes."""
    model = toy_model(family, dtype=torch.float64)
    model.set_experts_implementation("eager")
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_fused_and_whole_logits_agree_in_each_family(family):
    model = eager_model(family)
    root = CausalLoss(model)
    outcomes = []
    for fused in (True, False):
        root.fused = fused
        loss = root(*micro_batch())
        model.zero_grad()
        loss.backward()
        outcomes.append((loss.detach(), {n: p.grad for n, p in model.named_parameters()}))
    (fused_loss, fused_grads), (whole_loss, whole_grads) = outcomes
    torch.testing.assert_close(fused_loss, whole_loss, rtol=1e-9, atol=0)
    for name, expected in whole_grads.items():
        assert expected is not None, name
        scale = float(expected.abs().max())
        assert float((fused_grads[name] - expected).abs().max()) <= 1e-6 * scale, name


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_transformers_own_loss_summed(family):
    """transformers shifts the labels itself, so it is given unshifted ones; one document a row."""
    model = eager_model(family)
    ids, _, _, _ = micro_batch()
    labels = ids.roll(-1, 1)
    labels[:, -1] = IGNORED
    positions = torch.arange(12).expand(2, 12)
    with torch.no_grad():
        theirs = model(input_ids=ids, labels=ids, use_cache=False).loss
        got = CausalLoss(model)(ids, labels, positions, (12, 12))
    torch.testing.assert_close(got / 22, theirs.double(), rtol=1e-6, atol=0)
