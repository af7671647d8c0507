"""The fused RMS norm against the formula, and against the norms of the families that take it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from toy_models import FAMILIES, meta_model, toy_config, toy_model
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm

from hecate.models.norms import fuse_norms, rms_norm

# two a layer and one at the end; queries and keys, or their low-rank parts, have more
NORMS = {"mixtral": 5, "qwen3_moe": 9, "olmoe": 9, "deepseek_v3": 13, "gpt_oss": 5}


def test_by_hand():
    """Mean square 12.5: 3 / sqrt(12.5) and 4 / sqrt(12.5), then the weight."""
    x, weight = torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 10.0])
    expected = torch.tensor([[3 / 12.5**0.5, 40 / 12.5**0.5]])
    torch.testing.assert_close(rms_norm(x, weight, 0.0), expected)
    torch.testing.assert_close(rms_norm(x, weight, 12.5), expected / 2**0.5)
    assert rms_norm(torch.zeros(1, 2), weight, 1e-6).tolist() == [[0, 0]]


def test_gradients_agree_with_finite_differences():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: rms_norm(a, b, 0.1), (x, weight))


def test_strided_rows_give_what_contiguous_ones_give():
    x = torch.randn(2, 4, 3, 8, dtype=torch.float64)
    weight = torch.rand(8, dtype=torch.float64)
    heads_first = x.transpose(1, 2)
    expected = rms_norm(heads_first.contiguous(), weight, 1e-6)
    torch.testing.assert_close(rms_norm(heads_first, weight, 1e-6), expected, rtol=0, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_norm_of_each_family_takes_it_and_gives_what_it_gave(family):
    own, fused = toy_model(family), toy_model(family)
    assert fuse_norms(fused) == NORMS[family]
    pairs = [
        (mine, theirs)
        for theirs, mine in zip(own.modules(), fused.modules(), strict=True)
        if type(theirs).__name__.endswith("RMSNorm")
    ]
    assert len(pairs) == NORMS[family]
    for mine, theirs in pairs:
        outcomes = []
        for norm in (mine, theirs):
            norm.zero_grad()
            generator = torch.Generator().manual_seed(1)
            x = torch.randn(6, norm.weight.shape[0], generator=generator, requires_grad=True)
            d_y = torch.randn(x.shape, generator=generator)
            y = norm(x)
            y.backward(d_y)
            outcomes.append((y, x.grad, norm.weight.grad))
        for got, want in zip(*outcomes, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_on_the_meta_device_takes_it_too(family):
    assert fuse_norms(meta_model(toy_config(family))) == NORMS[family]


def test_a_norm_of_another_formula_keeps_its_own():
    """Gemma multiplies by one plus the weight."""
    model = nn.ModuleList([Gemma3RMSNorm(8, eps=1e-6), nn.LayerNorm(8), nn.RMSNorm(8, eps=1e-6)])
    before = [norm.forward for norm in model]
    assert fuse_norms(model) == 1
    assert [norm.forward == own for norm, own in zip(model, before, strict=True)] == [
        True,
        True,
        False,
    ]


def test_bf16_runs_the_familys_own_code():
    own, fused = (toy_model("olmoe", dtype=torch.bfloat16).model.norm for _ in range(2))
    assert fuse_norms(nn.ModuleList([fused])) == 1
    x = torch.randn(5, 64).to(torch.bfloat16)
    assert torch.equal(fused(x), own(x))
    # fp32 masters beside bf16 activations are not for the fused path either
    assert torch.equal(fused.float()(x), own.float()(x))
