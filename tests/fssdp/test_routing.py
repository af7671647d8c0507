"""Counts, auxiliary losses by hand, and the replay of a checkpointed layer's choices."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from hecate.fssdp.dispatch import count_tokens
from hecate.fssdp.routing import RouterConfig, RoutingLog


def new_log(layers: int = 1, experts: int = 4) -> RoutingLog:
    return RoutingLog(layers, experts, torch.device("cpu"))


def record(
    log: RoutingLog, layer: int, logits: list[list[float]], counts: list[int], sigmoid: bool = False
) -> None:
    log.record_logits(layer, torch.tensor(logits, dtype=torch.float64), sigmoid=sigmoid)
    log.record_counts(layer, torch.tensor(counts))


BALANCE = RouterConfig(balance_loss=0.25, z_loss=0.0)
Z = RouterConfig(balance_loss=0.0, z_loss=0.5)


def test_perfect_balance_costs_exactly_the_coefficient_for_each_layer():
    log = new_log(layers=2)
    for layer in (0, 1):
        record(log, layer, [[0.0] * 4] * 6, [3, 3, 3, 3])
    assert float(log.auxiliary_loss(BALANCE, global_tokens=6)) == 2 * 0.25


def test_collapse_onto_one_expert_costs_as_many_times_more():
    log = new_log()
    record(log, 0, [[100.0, 0.0, 0.0, 0.0]] * 5, [5, 0, 0, 0])
    assert float(log.auxiliary_loss(BALANCE, global_tokens=5)) == pytest.approx(4 * 0.25)


def test_balance_loss_by_hand():
    """f = (3/4, 1/4), P = mean of (3/4, 1/4) and (1/2, 1/2): 2 (3/4 * 5/8 + 1/4 * 3/8) = 9/8."""
    log = new_log(experts=2)
    record(log, 0, [[math.log(3), 0.0], [1.0, 1.0]], [3, 1])
    assert float(log.auxiliary_loss(BALANCE, global_tokens=2)) == pytest.approx(0.25 * 9 / 8)


def test_balance_loss_of_sigmoid_scores_by_hand():
    """Scores (1/2, 1/4) and (3/4, 3/4): shares (2/3, 1/3) and (1/2, 1/2); P = (7/12, 5/12)."""
    log = new_log(experts=2)
    logits = [[0.0, -math.log(3)], [math.log(3), math.log(3)]]
    record(log, 0, logits, [1, 3], sigmoid=True)
    expected = 0.25 * 2 * (1 / 4 * 7 / 12 + 3 / 4 * 5 / 12)
    assert float(log.auxiliary_loss(BALANCE, global_tokens=2)) == pytest.approx(expected)


@pytest.mark.parametrize("sigmoid", [False, True])
def test_z_loss_by_hand(sigmoid):
    """log(1 + 3) and log(2 + 2): the logits count as they are, however they are scored."""
    log = new_log(experts=2)
    logits = [[0.0, math.log(3)], [math.log(2), math.log(2)]]
    record(log, 0, logits, [1, 3], sigmoid=sigmoid)
    expected = 0.5 * math.log(4) ** 2
    assert float(log.auxiliary_loss(Z, global_tokens=2)) == pytest.approx(expected)


def test_losses_add_up_over_layers_of_different_sizes():
    log = new_log(layers=2, experts=3)
    record(log, 0, [[100.0, 0.0]], [1, 0])  # 2 experts, collapsed: 2
    record(log, 1, [[0.0, 0.0, 0.0]], [1, 1, 1])  # 3 experts, even: 1
    loss = log.auxiliary_loss(BALANCE, global_tokens=1)
    assert float(loss) == pytest.approx(0.25 * (2 + 1))
    assert log.counts_YE.tolist() == [[1, 0, 0], [1, 1, 1]]


def test_the_shares_of_all_ranks_add_up_to_the_loss_of_one():
    """Two ranks with unequal tokens; each knows the counts of both, and its own probabilities."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, 4, generator=generator, dtype=torch.float64)
    counts = torch.tensor([5, 1, 7, 1])
    config = RouterConfig(balance_loss=0.3, z_loss=0.2)

    def share(rows: slice) -> float:
        log = new_log()
        log.record_logits(0, logits[rows], sigmoid=False)
        log.record_counts(0, counts)
        return float(log.auxiliary_loss(config, global_tokens=7))

    whole = share(slice(0, 7))
    assert share(slice(0, 5)) + share(slice(5, 7)) == pytest.approx(whole, rel=1e-12)
    assert share(slice(0, 0)) == 0.0


def test_the_gradient_reaches_the_logits_through_probabilities_alone():
    logits = torch.tensor([[math.log(3), 0.0]], dtype=torch.float64, requires_grad=True)
    log = new_log(experts=2)
    log.record_logits(0, logits, sigmoid=False)
    log.record_counts(0, torch.tensor([2, 0]))
    log.auxiliary_loss(BALANCE, global_tokens=1).backward()
    # d/dx 2 * p with p = 3/4: 2 p (1 - p)
    assert logits.grad is not None
    assert logits.grad.tolist()[0] == pytest.approx([0.25 * 3 / 8, -0.25 * 3 / 8])


def test_bf16_logits_are_summed_in_fp32():
    log = new_log(experts=2)
    log.record_logits(0, torch.zeros(1000, 2, dtype=torch.bfloat16), sigmoid=False)
    log.record_counts(0, torch.tensor([1000, 1000]))
    loss = log.auxiliary_loss(BALANCE, global_tokens=1000)
    assert loss.dtype == torch.float32
    assert float(loss) == 0.25


def test_counts_add_up_over_micro_batches_and_begin_anew_each_step():
    log = new_log(experts=3)
    first = log.counts_YE
    for counts in ([1, 2, 3], [1, 0, 0]):
        log.begin_micro_batch()
        log.record_counts(0, torch.tensor(counts))
    assert log.counts_YE.tolist() == [[2, 2, 3]]
    log.begin_step()
    assert log.counts_YE.tolist() == [[0, 0, 0]]
    assert first.tolist() == [[2, 2, 3]]  # a step's counts stay with whoever took them


def test_a_micro_batchs_loss_is_its_own():
    log = new_log(experts=2)
    record(log, 0, [[100.0, 0.0]], [1, 0])
    log.begin_micro_batch()
    record(log, 0, [[0.0, 0.0]], [1, 1])
    assert float(log.auxiliary_loss(BALANCE, global_tokens=1)) == pytest.approx(0.25)


class Layer(nn.Module):
    """A router and its experts; the logits move by ``drift`` each time they are computed."""

    def __init__(self, log: RoutingLog, drift: torch.Tensor, *, method: bool) -> None:
        super().__init__()
        self.router = nn.Linear(6, 4, dtype=torch.float64)
        self.experts = nn.Parameter(torch.randn(4, 6, 6, dtype=torch.float64))
        self.log, self.drift, self.method = log, drift, method
        self.chosen: list[torch.Tensor] = []

    def forward(self, x_TD: torch.Tensor) -> torch.Tensor:
        logits_TE = self.router(x_TD) + len(self.chosen) * self.drift
        self.log.record_logits(0, logits_TE, sigmoid=False)
        scores_TE = logits_TE.softmax(-1)
        top = scores_TE.topk(2, dim=-1) if self.method else torch.topk(scores_TE, k=2)
        weights_TK, index_TK = top
        assert top.values is weights_TK
        self.chosen.append(index_TK)
        self.log.record_counts(0, count_tokens(index_TK, 4))
        y_TKD = torch.einsum("tkij,tj->tki", self.experts[index_TK], x_TD)
        return (y_TKD * weights_TK[..., None]).sum(1)


def one_backward(*, drift: float, checkpointed: bool, method: bool) -> tuple[Layer, torch.Tensor]:
    torch.manual_seed(0)
    log = new_log()
    pull = torch.tensor([0.0, 0.0, 0.0, drift], dtype=torch.float64)
    layer = Layer(log, pull, method=method)
    x_TD = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    if checkpointed:
        y_TD = checkpoint(layer, x_TD, use_reentrant=False, context_fn=log.checkpoint_contexts)
    else:
        y_TD = layer(x_TD)
    loss = y_TD.square().sum() + log.auxiliary_loss(
        RouterConfig(balance_loss=0.1, z_loss=0.1), global_tokens=5
    )
    loss.backward()
    assert x_TD.grad is not None
    return layer, x_TD.grad


@pytest.mark.parametrize("method", [False, True], ids=["torch.topk", "Tensor.topk"])
def test_a_recomputed_layer_keeps_its_choices_though_the_router_would_choose_otherwise(method):
    layer, x_grad = one_backward(drift=50.0, checkpointed=True, method=method)
    first, again = layer.chosen
    assert torch.equal(first, again)
    assert not bool((first == 3).all(0).any())  # whereas the drift alone would choose expert 3
    for grad in (layer.router.weight.grad, layer.experts.grad, x_grad):
        assert grad is not None
        assert bool(grad.isfinite().all())
    assert float(layer.experts.grad.abs().sum()) > 0
    assert layer.log.counts_YE.tolist() == [torch.bincount(first.flatten(), minlength=4).tolist()]
    assert layer.log.replay is None


@pytest.mark.parametrize("method", [False, True], ids=["torch.topk", "Tensor.topk"])
def test_recomputing_gives_the_gradients_of_not_recomputing(method):
    plain, x_grad = one_backward(drift=0.0, checkpointed=False, method=method)
    replayed, x_replayed = one_backward(drift=0.0, checkpointed=True, method=method)
    assert len(plain.chosen) == 1
    assert len(replayed.chosen) == 2
    torch.testing.assert_close(x_replayed, x_grad, rtol=1e-13, atol=1e-13)
    for name, parameter in plain.named_parameters():
        theirs = dict(replayed.named_parameters())[name].grad
        torch.testing.assert_close(theirs, parameter.grad, rtol=1e-13, atol=1e-13)
    assert torch.equal(plain.log.counts_YE, replayed.log.counts_YE)


def test_several_choices_in_one_region_are_replayed_in_their_order():
    """DeepSeek-V3 chooses groups first: two ``topk`` and then a third."""
    log = new_log()
    runs: list[list[torch.Tensor]] = []

    def region(x: torch.Tensor) -> torch.Tensor:
        shifted = x + 100.0 * len(runs) * torch.arange(6)
        runs.append(chosen := [])
        groups = shifted.view(3, 2).topk(1, dim=-1)
        chosen.append(groups.indices)
        best = torch.topk(groups.values.flatten(), 2, sorted=False)
        chosen.append(best.indices)
        rows = shifted.view(3, 2).topk(2, dim=0)
        chosen.append(rows.indices)
        return (best.values.sum() * 2 + rows.values.sum() * 3).square()

    x = torch.tensor([3.0, 1.0, 5.0, 9.0, 2.0, 8.0], requires_grad=True)
    checkpoint(region, x, use_reentrant=False, context_fn=log.checkpoint_contexts).backward()
    first, again = runs
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a, b)
    # best of the groups (3, 9, 8): 9 and 8; by column the largest two: 3, 5 and 9, 8. The square
    # is taken of the value that the second run computes, 100 times its place more.
    value = 2 * (309 + 508) + 3 * (3 + 205 + 309 + 508)
    assert x.grad is not None
    assert x.grad.tolist() == [2 * value * n for n in (3, 0, 3, 5, 0, 5)]


def test_outside_a_checkpointed_region_topk_is_pytorchs_own():
    log = new_log()
    recording, replaying = log.checkpoint_contexts()
    x = torch.tensor([1.0, 3.0, 2.0])
    with recording:
        assert log.replay is not None
        assert not log.recomputing
        assert x.topk(2).indices.tolist() == [1, 2]
    assert log.replay is None
    with replaying:
        assert log.recomputing
        assert (-x).topk(2).indices.tolist() == [1, 2]
        assert (-x).sort().values.tolist() == [-3.0, -2.0, -1.0]
    assert not log.recomputing
    assert (-x).topk(2).indices.tolist() == [0, 2]


def test_regions_may_be_recomputed_in_any_order():
    log = new_log(layers=2)
    x = torch.tensor([1.0, 3.0, 2.0])
    regions = [log.checkpoint_contexts() for _ in range(2)]
    for sign, (recording, _) in zip((1, -1), regions, strict=True):
        with recording:
            (sign * x).topk(1)
    for expected, (_, replaying) in zip((0, 1), reversed(regions), strict=True):
        for _ in range(2):  # a graph that is kept may be run again
            with replaying:
                assert x.topk(1).indices.tolist() == [expected]
