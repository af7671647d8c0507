"""The token exchange over real ranks: who gets which row, and that backward is its transpose."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ranks import run_ranks

from collectives.token_exchange import TokenExchange, exchange_rows, gather_counts
from hecate.mesh import ParallelContext

WORLDS = (1, 2, 3, 4)
COLUMNS = 2


def rows_from_to(source: int, target: int) -> int:
    """Uneven, zeros among them: rank 0 sends itself none, rank 3 sends nobody anything."""
    return 0 if source == 3 else ((0, 2, 1, 3), (1, 0, 3, 0), (2, 3, 0, 0))[source][target]


def splits(rank: int, world_size: int) -> tuple[list[int], list[int]]:
    peers = range(world_size)
    return [rows_from_to(rank, r) for r in peers], [rows_from_to(r, rank) for r in peers]


def label(source: int, target: int, row: int) -> list[float]:
    return [100.0 * source + 10.0 * target + row, -1.0 - row]


def exchange_on_rank(ctx: ParallelContext) -> dict[str, Any]:
    group, peers = ctx.groups.tokens, range(ctx.world_size)
    send, receive = splits(ctx.rank, ctx.world_size)
    if ctx.world_size == 1:
        send = receive = [3]
    labelled = [label(ctx.rank, r, i) for r in peers for i in range(send[r])]
    sent = torch.tensor(labelled, dtype=torch.float32).view(-1, COLUMNS)
    generator = torch.Generator().manual_seed(ctx.rank)
    x = torch.randn(sum(send), COLUMNS, generator=generator, dtype=torch.float64)
    y = torch.randn(sum(receive), COLUMNS, generator=generator, dtype=torch.float64)

    def apply(rows: torch.Tensor) -> torch.Tensor:
        return TokenExchange.apply(rows, send, receive, group)

    leaf = x.clone().requires_grad_()
    there = apply(leaf)
    there.backward(y)
    back = exchange_rows(y, receive, send, group)
    column_major = exchange_rows(sent.t().contiguous().t(), send, receive, group)
    integers = exchange_rows(sent.long()[:, :, None].expand(-1, -1, 3), send, receive, group)
    return {
        "sent": sent.tolist(),
        "received": exchange_rows(sent, send, receive, group).tolist(),
        "column_major": column_major.tolist(),
        "integers": integers,
        "there_y": float((there.detach() * y).sum()),
        "x_back": float((x * back).sum()),
        "grad": leaf.grad,
        "back": back,
        "slopes": slopes(ctx, apply, x, y),
    }


def slopes(ctx: ParallelContext, apply: Any, x: torch.Tensor, y: torch.Tensor) -> float:
    """The largest error of backward against central differences of sum(sin(exchange(x)) * y)."""

    def loss(rows: torch.Tensor) -> torch.Tensor:
        return (apply(rows).sin() * y).sum()

    leaf = x.clone().requires_grad_()
    loss(leaf).backward()
    assert leaf.grad is not None
    worst, step = 0.0, 1e-6
    for rank in range(ctx.world_size):
        size = torch.tensor(x.numel())
        torch.distributed.broadcast(size, src=rank, group=ctx.groups.control)
        for place in range(int(size)):
            ends = []
            for sign in (1, -1):
                moved = x.clone()
                if rank == ctx.rank:
                    moved.view(-1)[place] += sign * step
                total = loss(moved)
                torch.distributed.all_reduce(total, group=ctx.groups.control)
                ends.append(float(total))
            if rank == ctx.rank:
                slope = (ends[0] - ends[1]) / (2 * step)
                worst = max(worst, abs(slope - float(leaf.grad.view(-1)[place])))
    return worst


@pytest.fixture(scope="module", params=WORLDS)
def ranks(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return run_ranks(exchange_on_rank, request.param)


def test_every_row_arrives_once_in_the_order_of_its_sources(ranks):
    for target, outcome in enumerate(ranks):
        count = 3 if len(ranks) == 1 else None
        expected = [
            label(source, target, row)
            for source in range(len(ranks))
            for row in range(count or rows_from_to(source, target))
        ]
        assert outcome["received"] == expected


def test_strided_rows_and_rows_of_more_dimensions_travel_alike(ranks):
    for outcome in ranks:
        assert outcome["column_major"] == outcome["received"]
        assert outcome["integers"].dtype == torch.int64
        assert outcome["integers"].shape == (len(outcome["received"]), COLUMNS, 3)
        assert outcome["integers"][..., 2].tolist() == outcome["received"]


def test_backward_is_the_exchange_in_the_other_direction(ranks):
    for outcome in ranks:
        assert torch.equal(outcome["grad"], outcome["back"])


def test_backward_is_the_transpose(ranks):
    """<exchange(x), y> = <x, exchange_back(y)>, summed over ranks."""
    left = sum(outcome["there_y"] for outcome in ranks)
    right = sum(outcome["x_back"] for outcome in ranks)
    assert left != 0
    assert left == pytest.approx(right, abs=1e-13)


def test_backward_agrees_with_finite_differences(ranks):
    assert max(outcome["slopes"] for outcome in ranks) < 1e-8


def counts_on_rank(ctx: ParallelContext, num_experts: int) -> torch.Tensor:
    counts_E = torch.arange(num_experts) + 10 * ctx.rank
    return gather_counts(counts_E, ctx.groups.tokens, ctx.world_size)


@pytest.mark.parametrize(
    ("world_size", "num_experts", "expected"),
    [
        (1, 3, [[0, 1, 2]]),
        (3, 2, [[0, 1], [10, 11], [20, 21]]),
    ],
)
def test_every_rank_learns_every_ranks_counts(world_size, num_experts, expected):
    for counts_WE in run_ranks(counts_on_rank, world_size, num_experts):
        assert counts_WE.dtype == torch.int64
        assert counts_WE.tolist() == expected


def wrong_splits_on_rank(ctx: ParallelContext) -> str:
    with pytest.raises(ValueError) as caught:
        exchange_rows(torch.zeros(4, 2), [1, 2], [1, 2], ctx.groups.tokens)
    return str(caught.value)


def test_splits_that_do_not_add_up_are_refused_before_anything_is_sent():
    for message in run_ranks(wrong_splits_on_rank, 2):
        assert message == "4 rows to send, but the splits [1, 2] add up to 3"
