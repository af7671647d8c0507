"""Which row goes where: the token exchange of one MoE layer, planned from counts alone. Pure.

A *slot* is one (token, choice) pair; there are ``S = T * K`` of them, numbered ``t * K + k``.
Sent rows lie by destination rank and, within it, by expert id; received rows lie by source rank
and then by expert. The grouped GEMM wants them by expert alone, which ``arrange`` gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from collectives.placement import Placement


@dataclass(frozen=True)
class DispatchPlan:
    """The exchange of one layer in one micro-batch, as rank ``rank`` sees it.

    ``slot_order_S``: the slot that each sent row holds. ``row_of_slot_TK``: its inverse.
    ``arrange_R``: the received row that each row in expert order is, or ``None`` where received
    rows lie by expert already. ``rows_per_expert``: rows of each expert that this rank computes,
    in the order of ``Placement.chunks_on(rank)``.
    """

    slot_order_S: torch.Tensor
    row_of_slot_TK: torch.Tensor
    send_rows: tuple[int, ...]
    receive_rows: tuple[int, ...]
    arrange_R: torch.Tensor | None
    rows_per_expert: tuple[int, ...]


def count_tokens(top_k_index_TK: torch.Tensor, num_experts: int) -> torch.Tensor:
    """Slots routed to each expert: ``[T, K]`` integers -> ``[E]`` int64, on the same device."""
    return torch.bincount(top_k_index_TK.reshape(-1), minlength=num_experts)


def plan_dispatch(
    top_k_index_TK: torch.Tensor, counts_WE: torch.Tensor, placement: Placement, rank: int
) -> DispatchPlan:
    """Plan the exchange under a partition: every slot goes to the owner of its expert.

    ``top_k_index_TK``: expert ids, any device. ``counts_WE``: every rank's slots per expert,
    ``[W, E]`` int64, CPU.
    """
    by_owner = [expert for r in range(placement.world_size) for expert in placement.chunks_on(r)]
    position_E = torch.empty(len(by_owner), dtype=torch.int16)
    position_E[torch.tensor(by_owner, dtype=torch.long)] = torch.arange(
        len(by_owner), dtype=torch.int16
    )
    slots_S = top_k_index_TK.reshape(-1)
    slot_order_S = torch.argsort(position_E.to(slots_S.device)[slots_S], stable=True)
    row_of_slot_S = torch.empty_like(slot_order_S)
    row_of_slot_S[slot_order_S] = torch.arange(slots_S.numel(), device=slots_S.device)

    counts = counts_WE.tolist()
    own = placement.chunks_on(rank)
    send_rows = tuple(
        sum(counts[rank][expert] for expert in placement.chunks_on(r))
        for r in range(placement.world_size)
    )
    receive_rows = tuple(sum(row[expert] for expert in own) for row in counts)
    rows_per_expert = tuple(sum(row[expert] for row in counts) for expert in own)
    arrange = None
    if placement.world_size > 1 and len(own) > 1:
        arrange = _by_expert([[row[expert] for expert in own] for row in counts])
        arrange = arrange.to(slots_S.device)
    return DispatchPlan(
        slot_order_S=slot_order_S,
        row_of_slot_TK=row_of_slot_S.view(top_k_index_TK.shape),
        send_rows=send_rows,
        receive_rows=receive_rows,
        arrange_R=arrange,
        rows_per_expert=rows_per_expert,
    )


def _by_expert(counts_We: Sequence[Sequence[int]]) -> torch.Tensor:
    """The order that takes rows from (source, expert) to (expert, source)."""
    counts = torch.tensor(counts_We, dtype=torch.long)
    starts = (counts.flatten().cumsum(0) - counts.flatten()).view_as(counts)
    lengths, starts = counts.T.flatten(), starts.T.flatten()
    before = lengths.cumsum(0) - lengths
    return torch.repeat_interleave(starts - before, lengths) + torch.arange(int(lengths.sum()))
