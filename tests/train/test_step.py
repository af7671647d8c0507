"""One optimizer step: what it refuses, clips, counts and leaves to the way a batch is cut."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from ranks import run_ranks
from toy_models import toy_config

from hecate.data import MicroBatch
from hecate.errors import HecateError
from hecate.fssdp.routing import RouterConfig
from hecate.mesh import MeshConfig, ParallelContext, Rendezvous, open_mesh
from hecate.models.build import ModelConfig
from hecate.models.loss import IGNORED
from hecate.train.build import Trainer, build_trainer
from hecate.train.config import RunConfig, TrainConfig
from hecate.train.dense import assign, local
from hecate.train.optim import OptimizerConfig, ScheduleConfig

ROW_TOKENS = 12
QUIET = RouterConfig(balance_loss=0.0)


def trainer_of(
    ctx: ParallelContext,
    family: str = "qwen3_moe",
    *,
    accumulation: int = 1,
    dtype: str = "float32",
    clip_norm: float = 0.0,
    router: RouterConfig = QUIET,
    schedule: ScheduleConfig | None = None,
) -> Trainer:
    sizes = toy_config(family).to_diff_dict()
    for key in ("model_type", "transformers_version", "architectures", "dtype"):
        sizes.pop(key, None)
    config = RunConfig(
        name="step",
        seed=3,
        model=ModelConfig(family=family, sizes=sizes),
        router=router,
        train=TrainConfig(
            steps=10,
            batch_sequences=6,
            accumulation=accumulation,
            dtype=dtype,
            clip_norm=clip_norm,
        ),
        optimizer=OptimizerConfig(learning_rate=1e-2, weight_decay=0.1),
        schedule=schedule or ScheduleConfig(kind="constant"),
        data={"sequence_tokens": ROW_TOKENS},
    )
    return build_trainer(config, ctx, vocab_size=128, phase=lambda _: contextlib.nullcontext())


def batch(rows: Sequence[int]) -> MicroBatch:
    """Rows of one document each; row r has the labels of its first ``12 - r`` tokens."""
    ids = torch.stack(
        [
            torch.randint(2, 128, (ROW_TOKENS,), generator=torch.Generator().manual_seed(row))
            for row in rows
        ]
    )
    labels = ids.roll(-1, 1)
    for place, row in enumerate(rows):
        labels[place, ROW_TOKENS - 1 - row :] = IGNORED
    positions = torch.arange(ROW_TOKENS).repeat(len(rows), 1)
    return MicroBatch(ids, labels, positions, (ROW_TOKENS,) * len(rows))


LABELS = 11 + 10 + 9 + 8 + 7 + 6  # of rows 0 to 5


@pytest.fixture(scope="module")
def ctx() -> Iterator[ParallelContext]:
    with open_mesh(MeshConfig(device="cpu"), Rendezvous.from_environment({})) as context:
        yield context


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {n: local(p).detach().clone() for n, p in trainer.model.named_parameters()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, b[name]) for name, value in a.items())


def test_a_step_counts_tokens_labels_and_slots(ctx):
    trainer = trainer_of(ctx)
    before = weights(trainer)
    result = trainer.step.run(4, [batch(range(6))])
    assert (result.step, result.tokens, result.labels) == (4, 72, LABELS)
    assert result.counts_YE.shape == (2, 6)
    assert result.counts_YE.dtype == torch.int64
    assert result.counts_YE.sum(1).tolist() == [144, 144]  # two experts for each token
    assert result.loss == pytest.approx(math.log(128), rel=0.1)
    assert result.auxiliary_loss == 0.0
    assert not any(torch.equal(value, before[name]) for name, value in weights(trainer).items())


def test_the_loss_is_the_mean_over_labels(ctx):
    trainer = trainer_of(ctx)
    one = batch(range(6))
    with torch.no_grad():
        total = trainer.root(
            one.input_ids_BS, one.labels_BS, one.position_ids_BS, one.document_lengths
        )
    assert trainer.step.run(0, [one]).loss == pytest.approx(float(total) / LABELS, rel=1e-6)


def test_the_learning_rate_is_the_schedules(ctx):
    schedule = ScheduleConfig(kind="constant", warmup_steps=4)
    trainer = trainer_of(ctx, schedule=schedule)
    for step, expected in [(0, 0.0025), (2, 0.0075), (7, 0.01)]:
        assert trainer.step.run(step, [batch([0])]).learning_rate == pytest.approx(expected)
        for group in trainer.optimizer.param_groups:
            assert group["lr"] == pytest.approx(expected)


CUTS = {
    "one": [range(6)],
    "two": [range(3), range(3, 6)],
    "three": [range(2), range(2, 4), range(4, 6)],
    "six": [[row] for row in range(6)],
}


def test_the_way_a_batch_is_cut_changes_nothing(ctx):
    """Micro-batches have unequal numbers of labels; each label counts the same."""
    outcomes = {}
    for name, cut in CUTS.items():
        trainer = trainer_of(ctx, accumulation=len(cut), dtype="float64", clip_norm=0.5)
        results = [trainer.step.run(step, [batch(rows) for rows in cut]) for step in range(2)]
        outcomes[name] = results, weights(trainer)
    expected, expected_weights = outcomes["one"]
    for results, own in outcomes.values():
        for result, want in zip(results, expected, strict=True):
            assert result.loss == pytest.approx(want.loss, rel=1e-6)
            assert result.grad_norm == pytest.approx(want.grad_norm, rel=1e-5)
            assert (result.tokens, result.labels) == (72, LABELS)
            assert torch.equal(result.counts_YE, want.counts_YE)
        for name, value in own.items():
            # two steps of 0.01; transformers rounds to fp32 on the way
            torch.testing.assert_close(value, expected_weights[name], rtol=0, atol=2e-5)


def capture_gradients(trainer: Trainer) -> list[torch.Tensor]:
    kept: list[torch.Tensor] = []

    def keep(*_: Any) -> None:
        kept[:] = [
            local(p.grad).detach().clone().flatten()
            for p in trainer.model.parameters()
            if p.grad is not None
        ]

    trainer.optimizer.register_step_pre_hook(keep)
    return kept


def test_gradients_are_clipped_to_the_global_norm_and_reported_unclipped(ctx):
    free = trainer_of(ctx)
    unclipped = capture_gradients(free)
    norm = free.step.run(0, [batch(range(6))]).grad_norm
    whole = torch.cat(unclipped)
    assert norm == pytest.approx(float(whole.double().norm()), rel=1e-6)
    for limit in (norm / 7, norm * 1.01):
        trainer = trainer_of(ctx, clip_norm=limit)
        clipped = capture_gradients(trainer)
        assert trainer.step.run(0, [batch(range(6))]).grad_norm == pytest.approx(norm, rel=1e-6)
        scale = limit / norm if limit < norm else 1.0
        torch.testing.assert_close(torch.cat(clipped), whole * scale, rtol=1e-4, atol=1e-9)


def test_gradients_do_not_leak_into_the_next_step(ctx):
    trainer = trainer_of(ctx)
    trainer.step.run(0, [batch([0, 1])])
    assert all(p.grad is None for n, p in trainer.dense.items())
    again, fresh = capture_gradients(trainer), trainer_of(ctx)
    with torch.no_grad():
        for name, value in weights(trainer).items():
            local(dict(fresh.model.named_parameters())[name]).copy_(value)
    expected = capture_gradients(fresh)
    trainer.step.run(1, [batch([2])])
    fresh.step.run(1, [batch([2])])
    for got, want in zip(again, expected, strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_changes_no_weight(ctx, poison):
    trainer = trainer_of(ctx, "deepseek_v3", router=RouterConfig(bias_update_rate=0.1))
    trainer.step.run(0, [batch(range(6))])
    with torch.no_grad():
        trainer.dense["lm_head.weight"][5] = poison
    before = weights(trainer)
    buffers = {n: b.clone() for n, b in trainer.model.named_buffers()}
    moments = [s["exp_avg"].clone() for s in trainer.optimizer.state.values()]
    with pytest.raises(HecateError, match="step 3: .* not finite; no weight was changed") as error:
        trainer.step.run(3, [batch(range(6))])
    assert error.value.exit_code == 1
    assert "--resume auto" in error.value.fix
    after = weights(trainer)
    for name, value in before.items():
        assert torch.equal(after[name].nan_to_num(), value.nan_to_num()), name
    assert all(torch.equal(b, buffers[n]) for n, b in trainer.model.named_buffers())
    for state, moment in zip(trainer.optimizer.state.values(), moments, strict=True):
        assert torch.equal(state["exp_avg"], moment)


def test_a_gradient_that_is_not_finite_is_refused_though_the_loss_is_finite(ctx):
    trainer = trainer_of(ctx)
    before = weights(trainer)
    trainer.dense["model.norm.weight"].register_hook(lambda grad: grad * float("nan"))
    with pytest.raises(HecateError, match="gradient is not finite"):
        trainer.step.run(0, [batch(range(6))])
    assert same(before, weights(trainer))


def test_a_step_without_any_label_moves_weights_by_decay_alone(ctx):
    trainer = trainer_of(ctx)
    nothing = batch([0])
    nothing.labels_BS.fill_(IGNORED)
    before = weights(trainer)
    result = trainer.step.run(0, [nothing])
    assert (result.loss, result.labels, result.grad_norm) == (0.0, 0, 0.0)
    for name, value in weights(trainer).items():
        decay = 1.0 if value.ndim < 2 else 1 - 1e-2 * 0.1
        torch.testing.assert_close(value, before[name] * decay, rtol=1e-6, atol=0)


def test_the_router_bias_moves_against_the_load_once_a_step(ctx):
    router = RouterConfig(balance_loss=0.0, bias_update_rate=0.25)
    trainer = trainer_of(ctx, "deepseek_v3", accumulation=2, router=router)
    result = trainer.step.run(0, [batch(range(3)), batch(range(3, 6))])
    for found, counts_E in zip(trainer.experts.routers, result.counts_YE, strict=True):
        assert int(counts_E.sum()) == 144
        expected = [0.25 if n < 18 else -0.25 if n > 18 else 0.0 for n in counts_E.tolist()]
        assert found.bias is not None
        assert found.bias.tolist() == expected
        assert len(set(expected)) > 1


def test_auxiliary_losses_are_averaged_over_micro_batches(ctx):
    router = RouterConfig(balance_loss=0.1, z_loss=0.01)
    whole = trainer_of(ctx, router=router).step.run(0, [batch([0]), batch([1])]).auxiliary_loss
    parts = [
        trainer_of(ctx, router=router).step.run(0, [batch([row])]).auxiliary_loss for row in (0, 1)
    ]
    assert whole == pytest.approx(sum(parts) / 2, rel=1e-5)
    assert 0.2 < whole < 0.4  # near balance, each of two layers adds its coefficient


def one_poisoned_rank(ctx: ParallelContext) -> dict[str, Any]:
    """Token 127 is in rank 1's rows alone, and its embedding is not a number."""
    trainer = trainer_of(ctx)
    name = "model.embed_tokens.weight"
    value = trainer.dense[name].full_tensor().detach()
    value[127] = float("nan")
    assign(trainer.dense[name], value)
    own = batch([2 * ctx.rank, 2 * ctx.rank + 1])
    own.input_ids_BS[own.input_ids_BS == 127] = 5
    own.labels_BS[own.labels_BS == 127] = 5
    if ctx.rank == 1:
        own.input_ids_BS[0, 3] = 127
    before = weights(trainer)
    try:
        trainer.step.run(0, [own])
    except HecateError as error:
        message = str(error)
    else:
        message = ""
    after = weights(trainer)
    unchanged = all(
        torch.equal(after[n].nan_to_num(), value.nan_to_num()) for n, value in before.items()
    )
    return {"message": message, "unchanged": unchanged}


def one_rank_asked(ctx: ParallelContext) -> list[bool]:
    """Whether to stop, after a step that nobody wants to be the last, and one that rank 1 does."""
    step = trainer_of(ctx).step
    own = [batch([2 * ctx.rank, 2 * ctx.rank + 1])]
    return [
        step.run(0, own).stop,
        step.run(1, own, stop=lambda: False).stop,
        step.run(2, own, stop=lambda: ctx.rank == 1).stop,
    ]


def test_all_ranks_hear_in_the_same_step_that_one_was_asked_to_stop():
    assert run_ranks(one_rank_asked, 2) == [[False, False, True]] * 2


def test_all_ranks_refuse_together_what_only_one_of_them_sees():
    for outcome in run_ranks(one_poisoned_rank, 2):
        assert "step 0: the loss or the gradient is not finite" in outcome["message"]
        assert outcome["unchanged"]
