"""The expert kernels against transformers' own eager experts, forward and backward."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import pytest
import torch
from gpus import gpus, no_host_wait
from torch import nn
from toy_models import FAMILIES, toy_model
from transformers.models.nemotron_h.configuration_nemotron_h import NemotronHConfig
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHExperts

from hecate.errors import ModelError
from hecate.fssdp.experts import (
    KERNELS,
    ExpertKernel,
    ExpertMath,
    GroupedExperts,
    LoopedExperts,
    fits_grouped,
    kernel_for,
)
from hecate.fssdp.shards import ExpertShard
from hecate.models.families import ChunkLayout, ExpertTensor, find_moe_layers

ROWS = (3, 0, 7, 1, 0, 12, 2, 5)  # of the first experts; what comes after has none


@dataclass
class Side:
    """One layer's experts twice: transformers' module, and a shard with the same weights.

    The module is on the CPU; the shard may be on a GPU, and its results come from there.
    """

    module: nn.Module
    shard: ExpertShard
    math: ExpertMath

    @property
    def rows(self) -> tuple[int, ...]:
        return ROWS[: self.shard.layer.num_experts]

    def inputs(self, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        shape = (sum(self.rows), 64)
        x, d_y = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
        return x.to(self.dtype), d_y.to(self.dtype)

    @property
    def dtype(self) -> torch.dtype:
        return next(iter(self.shard.weights.values())).dtype

    def weights(self) -> torch.Tensor:
        """What a router might give each row; zero and one among them."""
        return torch.linspace(0, 1, sum(self.rows), dtype=torch.float64).to(self.dtype)

    def eager(self, x_RD: torch.Tensor, d_y_RD: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Output, input gradient and that of the weights, each row given to its expert alone;
        adds weight gradients."""
        wide = next(self.module.parameters()).dtype
        leaf, weights_R = x_RD.to(wide).requires_grad_(), self.weights().to(wide).requires_grad_()
        expert_R = torch.repeat_interleave(torch.tensor(self.rows))
        y_RD = self.module(leaf, expert_R[:, None], weights_R[:, None])
        y_RD.backward(d_y_RD.to(wide))
        assert leaf.grad is not None and weights_R.grad is not None
        return y_RD.detach(), leaf.grad, weights_R.grad

    def ours(
        self, kernel: ExpertKernel, x_RD: torch.Tensor, d_y_RD: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        x_RD, d_y_RD, weights_R = (t.to(self.device) for t in (x_RD, d_y_RD, self.weights()))
        waits = no_host_wait() if self.stays_on_device(kernel) else nullcontext()
        with torch.no_grad(), waits:
            y_RD, saved = kernel.forward(x_RD, weights_R, self.rows, [self.shard], self.math)
            grads = kernel.backward(
                d_y_RD, x_RD, weights_R, saved, self.rows, [self.shard], self.math
            )
        return tuple(tensor.cpu() for tensor in (y_RD, *grads))

    @property
    def device(self) -> torch.device:
        return self.shard.parameter.device

    def stays_on_device(self, kernel: ExpertKernel) -> bool:
        """Whether nothing in the kernel may wait for the GPU.

        PyTorch drives grouped_mm from the host in fp32, and before Hopper.
        """
        if self.device.type != "cuda" or not isinstance(kernel, GroupedExperts):
            return self.device.type == "cuda"
        return self.dtype == torch.bfloat16 and torch.cuda.get_device_capability()[0] >= 9

    def assert_equal(self, got: torch.Tensor, expected: torch.Tensor, what: str) -> None:
        tolerance = {torch.float64: 1e-13, torch.float32: 3e-6, torch.bfloat16: 2e-2}[self.dtype]
        if what == "router weight gradient":  # a sum over features of what was rounded one by one
            tolerance *= 2
        assert got.shape == expected.shape, what
        worst = float((got.to(expected.dtype) - expected).abs().max())
        assert worst <= tolerance * max(1.0, float(expected.abs().max())), what

    def assert_same_as_transformers(self, kernel: ExpertKernel) -> None:
        x_RD, d_y_RD = self.inputs(0)
        expected = self.eager(x_RD, d_y_RD)
        got = self.ours(kernel, x_RD, d_y_RD)
        names = ("output", "input gradient", "router weight gradient")
        for what, ours, theirs in zip(names, got, expected, strict=True):
            assert ours.dtype == self.dtype, what
            self.assert_equal(ours, theirs, what)
        self.assert_gradients_equal()

    def assert_gradients_equal(self) -> None:
        for name, parameter in self.module.named_parameters():
            assert parameter.grad is not None
            self.assert_equal(self.shard.grads[name].cpu(), parameter.grad, name)


def experts_of(family: str, dtype: torch.dtype, device: str = "cpu", **sizes: object) -> Side:
    """bf16: the shard's masters and transformers' module stay fp32, with bf16 values."""
    masters = torch.float32 if dtype == torch.bfloat16 else dtype
    model = toy_model(family, dtype=masters, **sizes)
    model.set_experts_implementation("eager")
    layer = find_moe_layers(model)[0]
    module = model.get_submodule(layer.name)
    return side_of(module, find_moe_layers(model)[0], masters, dtype, device)


def side_of(module, layer, masters: torch.dtype, dtype: torch.dtype, device: str = "cpu") -> Side:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(parameter.to(dtype))
    shard = ExpertShard(
        layer,
        tuple(range(layer.num_experts)),
        device=torch.device(device),
        dtype=masters,
        compute_dtype=dtype,
    )
    for e in shard.expert_ids:
        shard.write(e, {name: p.detach()[e] for name, p in module.named_parameters()})
    shard.refresh()
    return Side(module, shard, ExpertMath.of(module, layer.name))


CASES = [
    *(("looped", family, torch.float64) for family in FAMILIES),
    *((kernel, family, torch.float32) for kernel in KERNELS for family in FAMILIES),
    *((kernel, family, torch.bfloat16) for kernel in KERNELS for family in ("olmoe", "gpt_oss")),
]
ON_GPU = [
    *(("looped", family, torch.float64) for family in FAMILIES),
    *(("grouped", family, torch.float32) for family in FAMILIES),
    *(("grouped", family, torch.bfloat16) for family in FAMILIES),
]


@pytest.fixture(
    params=[
        *((*case, "cpu") for case in CASES),
        *(pytest.param((*case, "cuda"), marks=gpus(1)) for case in ON_GPU),
    ],
    ids=lambda case: f"{case[0]}-{case[1]}-{str(case[2])[6:]}-{case[3]}",
)
def case(request: pytest.FixtureRequest) -> tuple[ExpertKernel, Side]:
    kernel, family, dtype, device = request.param
    return KERNELS[kernel](), experts_of(family, dtype, device)


def test_outputs_and_gradients_equal_transformers(case):
    kernel, side = case
    side.assert_same_as_transformers(kernel)


def test_an_expert_without_rows_gets_a_gradient_of_zero(case):
    """Even where an earlier step left something else in the buffer."""
    kernel, side = case
    for grad in side.shard.grads.values():
        grad.fill_(7.0)
    side.ours(kernel, *side.inputs(0))
    for e, count in enumerate(side.rows):
        for name, grad in side.shard.grads.items():
            assert bool((grad[e] == 0).all()) == (count == 0), (e, name)


def test_a_second_backward_adds_and_a_new_step_overwrites(case):
    kernel, side = case
    for seed in (1, 2):
        side.ours(kernel, *side.inputs(seed))
        side.eager(*side.inputs(seed))
    side.assert_gradients_equal()
    assert side.shard.parameter.grad is not None
    side.shard.begin_step()
    assert side.shard.parameter.grad is None
    side.module.zero_grad()
    side.ours(kernel, *side.inputs(3))
    side.eager(*side.inputs(3))
    side.assert_gradients_equal()


def test_no_rows_at_all_give_none_and_gradients_of_zero(case):
    kernel, side = case
    rows = (0,) * len(side.rows)
    nothing = torch.empty(0, 64, dtype=side.dtype, device=side.device)
    for grad in side.shard.grads.values():
        grad.fill_(7.0)
    with torch.no_grad():
        y_RD, saved = kernel.forward(nothing, nothing[:, 0], rows, [side.shard], side.math)
        d_x_RD, d_weights_R = kernel.backward(
            nothing, nothing, nothing[:, 0], saved, rows, [side.shard], side.math
        )
    assert y_RD.shape == d_x_RD.shape == (0, 64)
    assert d_weights_R.shape == (0,)
    for grad in side.shard.grads.values():
        assert torch.equal(grad, torch.zeros_like(grad))


def test_a_rank_without_experts_of_its_own_computes_with_its_copies(case):
    """It owns none of the layer, and holds all of it as copies."""
    kernel, side = case
    layer = side.shard.layer
    empty = ExpertShard(
        layer, (), device=side.device, dtype=torch.float32, compute_dtype=side.dtype
    )
    x_RD, d_y_RD, weights_R = (t.to(side.device) for t in (*side.inputs(0), side.weights()))
    both = [empty, side.shard]
    with torch.no_grad():
        y_RD, saved = kernel.forward(x_RD, weights_R, side.rows, both, side.math)
        d_x_RD, _ = kernel.backward(d_y_RD, x_RD, weights_R, saved, side.rows, both, side.math)
    expected = side.eager(*side.inputs(0))
    side.assert_equal(y_RD.cpu(), expected[0], "output")
    side.assert_equal(d_x_RD.cpu(), expected[1], "input gradient")
    side.assert_gradients_equal()


def test_inputs_are_left_as_they_were(case):
    kernel, side = case
    x_RD, d_y_RD = side.inputs(0)
    copies = x_RD.clone(), d_y_RD.clone()
    side.ours(kernel, x_RD, d_y_RD)
    assert torch.equal(x_RD, copies[0])
    assert torch.equal(d_y_RD, copies[1])


def test_the_fused_gate_is_used_only_where_it_is_the_familys_own():
    assert experts_of("mixtral", torch.float32).math.silu_gate
    assert not experts_of("mixtral", torch.float32, hidden_act="gelu").math.silu_gate
    assert not experts_of("gpt_oss", torch.float32).math.silu_gate  # clamped and interleaved


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_another_activation_runs_the_familys_code(kernel, activation):
    side = experts_of("mixtral", torch.float32, hidden_act=activation)
    side.assert_same_as_transformers(KERNELS[kernel]())


@pytest.mark.parametrize("kernel", KERNELS)
def test_experts_without_a_gate(kernel):
    """Nemotron-H: ``down(relu(up(x)) ** 2)``."""
    config = NemotronHConfig(
        hidden_size=64, moe_intermediate_size=32, n_routed_experts=4, num_experts_per_tok=2
    )
    config._experts_implementation = "eager"
    model = nn.Module()
    model.experts = NemotronHExperts(config)
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    side = side_of(model.experts, find_moe_layers(model)[0], torch.float32, torch.float32)
    assert side.math.up == "up_proj"
    side.assert_same_as_transformers(KERNELS[kernel]())


def test_experts_that_are_normalised_afterwards_are_refused():
    side = experts_of("mixtral", torch.float32)
    side.module.has_post_expert_norm = True
    with pytest.raises(ModelError, match=r"the experts of model\.layers\.0\.mlp\.experts"):
        ExpertMath.of(side.module, "model.layers.0.mlp.experts")


def layout(*shapes: tuple[int, ...]) -> ChunkLayout:
    tensors, offset = [], 0
    for number, shape in enumerate(shapes):
        tensors.append(ExpertTensor(str(number), shape, offset))
        offset += tensors[-1].numel
    return ChunkLayout(tuple(tensors))


@pytest.mark.parametrize(
    ("dtype", "shapes", "fits"),
    [
        (torch.bfloat16, ((64, 32), (32, 32)), True),
        (torch.float32, ((64, 32), (32, 32)), True),
        (torch.float64, ((64, 32), (32, 32)), False),
        (torch.bfloat16, ((8, 24), (24, 8)), True),
        (torch.bfloat16, ((20, 12), (12, 20)), False),
        (torch.float32, ((20, 12), (12, 20)), True),
        (torch.float32, ((6, 64), (64, 6)), False),
        (torch.bfloat16, ((64, 32), (64,), (32, 32), (32,)), True),
        (torch.bfloat16, ((64, 32), (4,), (32, 32), (32,)), False),
    ],
)
def test_the_grouped_kernel_is_for_aligned_experts_of_narrow_dtypes(dtype, shapes, fits):
    assert fits_grouped(dtype, layout(*shapes)) == fits
    on_gpu = kernel_for(torch.device("cuda"), dtype, layout(*shapes))
    assert type(on_gpu) is (GroupedExperts if fits else LoopedExperts)
    assert type(kernel_for(torch.device("cpu"), dtype, layout(*shapes))) is LoopedExperts


@pytest.mark.parametrize("sizes", [{"moe_intermediate_size": 6}, {"moe_intermediate_size": 12}])
def test_what_fits_the_grouped_kernel_is_what_pytorch_takes(sizes):
    """The rule above, against the operator itself; twelve fp32 elements are 3 x 16 bytes."""
    side = experts_of("qwen3_moe", torch.float32, **sizes)
    fits = fits_grouped(torch.float32, side.shard.layer.layout)
    assert fits == (sizes["moe_intermediate_size"] == 12)
    if fits:
        side.ours(GroupedExperts(), *side.inputs(0))
        return
    with pytest.raises(RuntimeError, match="16 bytes"):
        side.ours(GroupedExperts(), *side.inputs(0))
