"""Which row goes where: the token exchange of one MoE layer, planned from quotas alone. Pure.

A *slot* is one (token, choice) pair; there are ``S = T * K`` of them, numbered ``t * K + k``.
``quotas[s, e, r]`` says how many of rank s's slots for expert e rank r computes (2502.02581,
section 4.4). Sent rows lie by destination rank and, within it, in the order in which that rank
holds its experts; received rows lie by source rank and then by expert. The grouped GEMM wants
them by expert alone, which ``arrange`` gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hecate.fssdp.upload import upload
from hecate.planner.load import Counts


@dataclass(frozen=True)
class DispatchPlan:
    """The exchange of one layer in one micro-batch, as rank ``rank`` sees it.

    ``slot_order_S``: the slot that each sent row holds. ``row_of_slot_TK``: its inverse.
    ``crosses``: whether any rank sends another one a row; the same on all ranks. ``arrange_R``:
    the received row that each row in expert order is, or ``None`` where received rows lie by
    expert already. ``rows_per_expert``: rows of each expert that this rank computes, in the order
    in which it holds them.
    """

    slot_order_S: torch.Tensor
    row_of_slot_TK: torch.Tensor
    send_rows: tuple[int, ...]
    receive_rows: tuple[int, ...]
    crosses: bool
    arrange_R: torch.Tensor | None
    rows_per_expert: tuple[int, ...]


def count_tokens(top_k_index_TK: torch.Tensor, num_experts: int) -> torch.Tensor:
    """Slots routed to each expert: ``[T, K]`` integers -> ``[E]`` int64, on the same device."""
    slots_S = top_k_index_TK.reshape(-1)
    if slots_S.device.type != "cuda":
        return torch.bincount(slots_S, minlength=num_experts)
    # there bincount makes the host wait for the largest expert id
    counts_E = torch.zeros(num_experts, dtype=torch.int64, device=slots_S.device)
    return counts_E.scatter_add_(0, slots_S.long(), torch.ones_like(slots_S, dtype=torch.int64))


def plan_dispatch(
    top_k_index_TK: torch.Tensor,
    quotas_WEW: Counts,
    held: Sequence[Sequence[int]],
    rank: int,
) -> DispatchPlan:
    """Plan the exchange that the quotas ask for.

    ``top_k_index_TK``: expert ids, any device. ``held[r]``: the experts that rank r computes, in
    the order of its rows. Slots of an expert are dealt to ranks in slot order, lower ranks first.
    """
    slots_S = top_k_index_TK.reshape(-1)
    # int16 sorts in half the time of int64 on a CPU
    slot_order_S = torch.argsort(slots_S.to(torch.int16), stable=True)
    if tuple(held[0]) != tuple(range(quotas_WEW.shape[1])) or len(held) > 1:
        slot_order_S = slot_order_S[upload(_by_destination(quotas_WEW[rank], held), slots_S.device)]
    row_of_slot_S = torch.empty_like(slot_order_S)
    row_of_slot_S[slot_order_S] = torch.arange(slots_S.numel(), device=slots_S.device)

    rows_WW = quotas_WEW.sum(1)
    received_We = quotas_WEW[:, list(held[rank]), rank]
    arrange = None
    if np.count_nonzero(received_We.any(1)) > 1 and len(held[rank]) > 1:
        arrange = upload(_by_expert(received_We), slots_S.device)
    return DispatchPlan(
        slot_order_S=slot_order_S,
        row_of_slot_TK=row_of_slot_S.view(top_k_index_TK.shape),
        send_rows=tuple(rows_WW[rank].tolist()),
        receive_rows=tuple(rows_WW[:, rank].tolist()),
        crosses=int(np.trace(rows_WW)) != int(rows_WW.sum()),
        arrange_R=arrange,
        rows_per_expert=tuple(received_We.sum(0).tolist()),
    )


def _by_destination(quotas_EW: Counts, held: Sequence[Sequence[int]]) -> torch.Tensor:
    """The order that takes rows from (expert, destination) to (destination, expert)."""
    flat = quotas_EW.reshape(-1)
    starts = np.cumsum(flat) - flat
    world_size = len(held)
    places = [expert * world_size + r for r, experts in enumerate(held) for expert in experts]
    return _pieces(starts[places], flat[places])


def _by_expert(received_We: Counts) -> torch.Tensor:
    """The order that takes rows from (source, expert) to (expert, source)."""
    flat = received_We.reshape(-1)
    starts = (np.cumsum(flat) - flat).reshape(received_We.shape)
    return _pieces(starts.T.reshape(-1), received_We.T.reshape(-1))


def _pieces(starts: Counts, lengths: Counts) -> torch.Tensor:
    """``starts[0], starts[0] + 1, ...`` for each piece in turn, int64."""
    before = np.cumsum(lengths) - lengths
    return torch.from_numpy(np.repeat(starts - before, lengths) + np.arange(lengths.sum()))
