"""Schedules step by step, and which parameters an optimizer treats alike."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from toy_models import FAMILIES, toy_model

from hecate.train.optim import (
    OptimizerConfig,
    ScheduleConfig,
    build_optimizer,
    learning_rate_factor,
    role_of,
    set_learning_rate,
)


def factors(config: ScheduleConfig, steps: int) -> list[float]:
    return [learning_rate_factor(config, step, steps) for step in range(steps)]


def test_cosine_by_hand():
    config = ScheduleConfig(kind="cosine", warmup_steps=4, final_factor=0.2)
    root = math.sqrt(0.5)
    assert factors(config, 8) == pytest.approx(
        [0.25, 0.5, 0.75, 1.0, 1.0, 0.6 + 0.4 * root, 0.6, 0.6 - 0.4 * root]
    )
    assert learning_rate_factor(config, 8, 8) == pytest.approx(0.2)
    assert learning_rate_factor(config, 100, 8) == pytest.approx(0.2)  # past the end it stays


def test_wsd_by_hand():
    config = ScheduleConfig(kind="wsd", warmup_steps=2, final_factor=0.1, decay_fraction=0.3)
    assert factors(config, 10) == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 1, 0.7, 0.4])
    assert learning_rate_factor(config, 10, 10) == pytest.approx(0.1)
    assert learning_rate_factor(config, 12, 10) == pytest.approx(0.1)


def test_linear_by_hand():
    config = ScheduleConfig(kind="linear", warmup_steps=2, final_factor=0.2)
    assert factors(config, 6) == pytest.approx([0.5, 1, 1, 0.8, 0.6, 0.4])
    assert learning_rate_factor(config, 6, 6) == pytest.approx(0.2)
    assert learning_rate_factor(config, 9, 6) == pytest.approx(0.2)


def test_constant_by_hand():
    config = ScheduleConfig(kind="constant", warmup_steps=5)
    assert factors(config, 7) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1, 1])


@pytest.mark.parametrize("kind", ["cosine", "linear", "wsd", "constant"])
def test_without_warmup_the_first_step_is_whole(kind):
    assert learning_rate_factor(ScheduleConfig(kind=kind), 0, 10) == 1.0


@pytest.mark.parametrize("kind", ["cosine", "linear", "wsd", "constant"])
def test_a_run_shorter_than_its_warmup_only_warms_up(kind):
    config = ScheduleConfig(kind=kind, warmup_steps=10)
    assert factors(config, 3) == pytest.approx([0.1, 0.2, 0.3])


@given(
    kind=st.sampled_from(["cosine", "linear", "wsd"]),
    warmup=st.integers(0, 20),
    steps=st.integers(1, 100),
    final=st.floats(0, 1),
    decay=st.floats(0.01, 1),
)
def test_factors_rise_to_one_and_then_never_rise_again(kind, warmup, steps, final, decay):
    config = ScheduleConfig(
        kind=kind, warmup_steps=warmup, final_factor=final, decay_fraction=decay
    )
    values = factors(config, steps)
    assert all(0 < value <= 1 for value in values[:warmup])
    assert all(a < b for a, b in zip(values[:warmup], values[1:warmup], strict=False))
    after = values[warmup:]
    assert all(final - 1e-12 <= value <= 1 for value in after)
    assert all(a >= b for a, b in zip(after, after[1:], strict=False))


def named(**shapes: tuple[int, ...]) -> dict[str, nn.Parameter]:
    return {
        name.replace("__", "."): nn.Parameter(torch.ones(shape)) for name, shape in shapes.items()
    }


def test_roles_by_name_and_shape():
    parameters = named(embed=(8, 4), q=(4, 4), norm=(4,), experts__chunks=(2, 12), conv=(4, 1, 3))
    roles = {name: role_of(name, p, [parameters["embed"]]) for name, p in parameters.items()}
    assert roles == {
        "embed": "embedding",
        "q": "matrix",
        "norm": "vector",
        "experts.chunks": "expert",
        "conv": "other",
    }


def test_groups_carry_their_roles_and_only_vectors_escape_decay():
    parameters = named(embed=(8, 4), q=(4, 4), k=(2, 4), norm=(4,), mlp__experts__chunks=(2, 12))
    config = OptimizerConfig(learning_rate=0.5, beta1=0.8, beta2=0.7, eps=1e-5, weight_decay=0.3)
    optimizer = build_optimizer(config, parameters.items(), [parameters["embed"]])
    groups = {group["role"]: group for group in optimizer.param_groups}
    names = {
        role: [n for p in group["params"] for n, own in parameters.items() if own is p]
        for role, group in groups.items()
    }
    assert names == {
        "embedding": ["embed"],
        "matrix": ["q", "k"],
        "vector": ["norm"],
        "expert": ["mlp.experts.chunks"],
    }
    decay = {role: group["weight_decay"] for role, group in groups.items()}
    assert decay == {"embedding": 0.3, "matrix": 0.3, "vector": 0.0, "expert": 0.3}
    for group in groups.values():
        assert (group["lr"], group["betas"], group["eps"]) == (0.5, (0.8, 0.7), 1e-5)


def test_empty_dense_shards_and_frozen_parameters_are_left_out_but_not_experts():
    parameters = named(mlp__experts__chunks=(0, 12), q=(4, 4), o=(0, 4), frozen=(4, 4))
    parameters["frozen"].requires_grad_(False)
    optimizer = build_optimizer(OptimizerConfig(), parameters.items(), [])
    groups = {group["role"]: group["params"] for group in optimizer.param_groups}
    assert sorted(groups) == ["expert", "matrix"]
    assert [p is parameters["q"] for p in groups["matrix"]] == [True]
    assert [p is parameters["mlp.experts.chunks"] for p in groups["expert"]] == [True]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_dense_parameter_of_a_family_is_in_one_group(family):
    model = toy_model(family, tie_word_embeddings=family == "olmoe")
    embeddings = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    dense = {n: p for n, p in model.named_parameters() if ".experts." not in n or "shared" in n}
    optimizer = build_optimizer(OptimizerConfig(), dense.items(), embeddings)
    role = {id(p): g["role"] for g in optimizer.param_groups for p in g["params"]}
    assert len(role) == sum(len(g["params"]) for g in optimizer.param_groups) == len(dense)
    for name, parameter in dense.items():
        if "embed_tokens" in name or "lm_head" in name:
            expected = "embedding"
        elif name.endswith(("norm.weight", ".bias", ".sinks")):
            expected = "vector"
        else:
            expected = "matrix"
        assert role[id(parameter)] == expected, name


def test_one_step_by_hand():
    """AdamW's first step moves each weight by the learning rate, after decay has shrunk it."""
    parameters = named(q=(2, 2), norm=(2,))
    config = OptimizerConfig(learning_rate=0.1, weight_decay=0.5)
    optimizer = build_optimizer(config, parameters.items(), [])
    set_learning_rate(optimizer, 0.2)
    assert {group["lr"] for group in optimizer.param_groups} == {0.2}
    for parameter in parameters.values():
        parameter.grad = torch.full_like(parameter, 3.0)
    optimizer.step()
    q, norm = parameters["q"].detach(), parameters["norm"].detach()
    torch.testing.assert_close(q, torch.full((2, 2), 1 - 0.2 * 0.5 - 0.2))
    torch.testing.assert_close(norm, torch.full((2,), 1 - 0.2))


@pytest.mark.parametrize(
    "fields",
    [
        {"learning_rate": 0},
        {"learning_rate": -1e-3},
        {"beta1": 1.0},
        {"eps": 0},
        {"weight_decay": -0.1},
        {"kind": "sgd"},
    ],
)
def test_settings_out_of_range_are_refused(fields):
    with pytest.raises(ValueError):
        OptimizerConfig(**fields)


@pytest.mark.parametrize(
    "fields",
    [{"warmup_steps": -1}, {"final_factor": 1.5}, {"decay_fraction": 0}, {"kind": "steps"}],
)
def test_schedules_out_of_range_are_refused(fields):
    with pytest.raises(ValueError):
        ScheduleConfig(**fields)
