"""Autograd over ranks: each sparse collective is the other's backward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from launches import ACROSS, INSIDE, everywhere
from ranks import run_ranks

from collectives import (
    TRANSPORTS,
    Change,
    Placement,
    SparseExchange,
    Topology,
    gather_rows,
    reduce_rows,
)
from hecate.mesh import ParallelContext

NAMES = sorted(TRANSPORTS)
WORLD = 4
TOPOLOGY = Topology((0, 0, 1, 1), INSIDE, ACROSS)
# Rank 3 owns nothing; in the first layer it holds copies all the same. Rank 1 has no copies.
LAYERS = (
    Change(
        Placement.from_owners([0, 1, 2], WORLD),
        Placement(((0, 2, 3), (1, 3), (0, 2)), WORLD),
        5 * 8,
    ),
    Change(Placement.from_owners([2, 0], WORLD), Placement(((0, 2), (0,)), WORLD), 3 * 8),
)


def exchange_of(ctx: ParallelContext, name: str, layers: tuple[Change, ...]) -> SparseExchange:
    return SparseExchange(
        layers,
        TOPOLOGY,
        TRANSPORTS[name](),
        ctx.groups.tokens,
        ctx.groups.control,
        ctx.rank,
        torch.float64,
        torch.device("cpu"),
    )


def leaves(places, layers, seed: int) -> list[torch.Tensor]:
    """A leaf of random values for each (layer, chunk) of a rank."""
    return [
        torch.randn(
            layers[layer].chunk_bytes // 8,
            dtype=torch.float64,
            generator=torch.Generator().manual_seed(1000 * seed + 10 * layer + chunk),
        ).requires_grad_()
        for layer, chunk in places
    ]


def dot(left, right) -> float:
    return float(sum((a.detach() * b.detach()).sum() for a, b in zip(left, right, strict=True)))


def adjoint_on_rank(ctx: ParallelContext, name: str) -> dict[str, Any]:
    exchange = exchange_of(ctx, name, LAYERS)
    x = leaves(exchange.own_places, LAYERS, ctx.rank)
    y = leaves(exchange.held_places, LAYERS, 10 + ctx.rank)
    gathered = gather_rows(exchange, x)
    (
        sum((a * b.detach()).sum() for a, b in zip(gathered.rows, y, strict=True)) + gathered.tie
    ).backward()
    reduced = reduce_rows(exchange, y)
    (
        sum((a * b.detach()).sum() for a, b in zip(reduced.rows, x, strict=True)) + reduced.tie
    ).backward()
    return {
        "gather_y": dot(gathered.rows, y),
        "x_reduce": dot(x, reduced.rows),
        "x_grad": [(leaf.grad, row.detach()) for leaf, row in zip(x, reduced.rows, strict=True)],
        "y_grad": [(leaf.grad, row.detach()) for leaf, row in zip(y, gathered.rows, strict=True)],
    }


@pytest.mark.parametrize("name", NAMES)
def test_each_is_the_others_adjoint_and_backward(name):
    """<gather(x), y> = <x, reduce(y)> over all ranks; gradients are the other one's rows."""
    outcomes = run_ranks(adjoint_on_rank, WORLD, name)
    left = sum(outcome["gather_y"] for outcome in outcomes)
    right = sum(outcome["x_reduce"] for outcome in outcomes)
    assert abs(left) > 0.1
    assert left == pytest.approx(right, abs=1e-12)
    assert [len(outcome["x_grad"]) for outcome in outcomes] == [2, 1, 2, 0]
    assert [len(outcome["y_grad"]) for outcome in outcomes] == [4, 1, 3, 2]
    for outcome in outcomes:
        for grad, row in [*outcome["x_grad"], *outcome["y_grad"]]:
            assert torch.equal(grad, row)


def loss_on_rank(ctx: ParallelContext, name: str, both: bool) -> Any:
    """Rank r weighs its copy of the one chunk with r + 1, and squares it if ``both``."""
    before = Placement.from_owners([1], WORLD)
    layers = (Change(before, everywhere(before), 8),)
    exchange = exchange_of(ctx, name, layers)
    own = [torch.tensor([3.0], dtype=torch.float64, requires_grad=True)] if ctx.rank == 1 else []
    gathered = gather_rows(exchange, own)
    weighed = [(ctx.rank + 1) * (row**2 if both else row) for row in gathered.rows]
    if both:
        total = reduce_rows(exchange, weighed)
        (sum(row.sum() for row in total.rows) + total.tie).backward()
    else:
        sum(row.sum() for row in weighed).backward()
    return [float(leaf.grad) for leaf in own if leaf.grad is not None]


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_all_copies_add_up_at_the_owner(name):
    """Loss 1x + 2x + 3x + 4x; only rank 1 has a leaf, and the others go backward all the same."""
    assert run_ranks(loss_on_rank, WORLD, name, False) == [[], [10.0], [], []]


@pytest.mark.parametrize("name", NAMES)
def test_a_chain_of_both_differentiates(name):
    """10 x ** 2 at x = 3, computed in four places and reduced: slope 60."""
    assert run_ranks(loss_on_rank, WORLD, name, True) == [[], [60.0], [], []]


def test_rows_of_other_chunks_are_refused():
    exchange = SparseExchange(
        LAYERS, TOPOLOGY, TRANSPORTS["p2p"](), None, None, 2, torch.float64, torch.device("cpu")
    )
    assert exchange.own_places == ((0, 2), (1, 0))
    with pytest.raises(ValueError, match=r"rank 2: 1 rows given; expected 2, of .* \[\(0, 2\)"):
        gather_rows(exchange, [torch.zeros(5, dtype=torch.float64)])
