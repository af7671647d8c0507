"""Plans that differ between ranks end in one error, named alike on every rank."""

from __future__ import annotations

import datetime

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks

from collectives import Change, CollectiveError, Placement, PlanDisagreement, agree
from hecate.mesh import ParallelContext

CPU = torch.device("cpu")


def agreement_on_rank(ctx: ParallelContext, plans: list[tuple[int, list[int]]]) -> str:
    digest, layers = plans[ctx.rank]
    try:
        agree(digest, layers, ctx.groups.control, ctx.rank, ctx.world_size, device=CPU)
    except PlanDisagreement as error:
        return str(error)
    return "agreed"


@pytest.mark.parametrize(
    ("plans", "message"),
    [
        pytest.param([(5, [])] * 3, "agreed", id="no layers"),
        pytest.param([(2**63 - 1, [2**63 - 1, 0])] * 4, "agreed", id="the largest digest"),
        pytest.param([(5, [7, 8])], "agreed", id="one rank"),
        pytest.param(
            [(5, [7, 8]), (6, [7, 9]), (5, [7, 8])], "layer 1 on rank 1;", id="one rank differs"
        ),
        pytest.param(
            [(5, [7, 8]), (6, [7, 9]), (6, [7, 9])], "layer 1 on rank 0;", id="the first differs"
        ),
        pytest.param(
            [(5, [7]), (6, [8])], "layer 0 on rank 1;", id="of two, the lower one is right"
        ),
        pytest.param(
            [(1, [1, 1]), (2, [2, 1]), (1, [1, 1]), (3, [3, 4]), (1, [1, 1])],
            "layer 0 on ranks 1, 3; layer 1 on rank 3;",
            id="several layers and ranks",
        ),
        pytest.param(
            [(5, [7]), (5, [7]), (6, [7])],
            "the same layers, but not the same transfers, on rank 2;",
            id="only the whole differs",
        ),
        pytest.param(
            [(5, [7, 8]), (6, []), (5, [7, 8])],
            "plans of 2 layers on ranks 0, 2, 0 layers on rank 1;",
            id="another number of layers",
        ),
    ],
)
def test_every_rank_hears_which_layers_differ_on_which_ranks(plans, message):
    for rank, heard in enumerate(run_ranks(agreement_on_rank, len(plans), plans)):
        assert message in heard
        assert heard == "agreed" or heard.startswith(f"rank {rank}: ")


def sizes_on_rank(ctx: ParallelContext) -> str:
    """Rank 2 has chunks of another size, of a layer that has a name."""
    before = Placement.from_owners([0, 1], 3)
    after = Placement(((0, 1, 2), (1,)), 3)
    layer = Change(before, after, 16 if ctx.rank == 2 else 8, name="blocks.7.experts")
    try:
        agree(
            layer.digest(),
            [layer.digest()],
            ctx.groups.gather,
            ctx.rank,
            ctx.world_size,
            device=CPU,
            layers=[layer.name],
        )
    except PlanDisagreement as error:
        return str(error)
    return "agreed"


def test_chunks_of_unequal_size_are_a_disagreement_on_their_layer():
    for rank, heard in enumerate(run_ranks(sizes_on_rank, 3)):
        assert heard.startswith(f"rank {rank}: the ranks are about to launch different collectives")
        assert "another plan than most: layer blocks.7.experts on rank 2;" in heard


def absent_on_rank(ctx: ParallelContext, dies: bool) -> str:
    group = dist.new_group(backend="gloo", timeout=datetime.timedelta(seconds=2))
    dist.all_reduce(torch.zeros(1), group=group)  # connected
    heard = "absent"
    if ctx.rank == 1 and dies:
        dist.destroy_process_group(group)  # as when it dies: its connections are closed
    elif ctx.rank != 1:
        names = ["blocks.0.experts", "blocks.7.experts"]
        with pytest.raises(CollectiveError) as caught:
            agree(5, [7, 8], group, ctx.rank, 3, device=CPU, layers=names)
        heard = f"{type(caught.value).__name__}: {caught.value}"
    dist.barrier(group=ctx.groups.control)
    return heard


@pytest.mark.parametrize("dies", [False, True])
def test_a_rank_that_does_not_come_to_agree_is_missed_by_name(dies):
    first, second, third = run_ranks(absent_on_rank, 3, dies)
    assert second == "absent"
    for rank, heard in ((0, first), (2, third)):
        what = "the agreement on plans of layers blocks.0.experts, blocks.7.experts"
        assert f"rank {rank}: {what} " in heard
        # Whom the other survivor leaves hanging may hear of its end first.
        assert heard.startswith(("PeerLost", "CollectiveTimeout") if dies else "CollectiveTimeout")


def changes_on_rank(ctx: ParallelContext) -> str:
    """Rank 1 would copy chunk 1 of layer 1 elsewhere; all then launch nothing."""
    before = Placement.from_owners([0, 1], 2)
    wide = Placement(((0, 1), (1,)), 2)
    wider = Placement(((0, 1), (0, 1)), 2)
    layers = [Change(before, wide, 8), Change(before, (wide, wider)[ctx.rank], 8)]
    digests = [change.digest() for change in layers]
    return agreement_on_rank(ctx, [(sum(digests) % 2**63, digests)] * 2)


def test_digests_of_changes_tell_the_layer():
    first, second = run_ranks(changes_on_rank, 2)
    assert "layer 1 on rank 1;" in first and "layer 1 on rank 1;" in second
    assert "layer 0" not in first
