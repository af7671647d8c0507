"""Send rows to the ranks that compute them and back: one uneven all-to-all each way.

The exchange is its own transpose: the gradient of what was sent travels the way the result came.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist


def exchange_rows(
    rows_SD: torch.Tensor,
    send_rows: Sequence[int],
    receive_rows: Sequence[int],
    group: dist.ProcessGroup,
) -> torch.Tensor:
    """All-to-all of rows: ``send_rows[r]`` of them go to rank r, ``receive_rows[r]`` come from it.

    ``rows_SD``: ``[sum(send_rows), D]``, grouped by destination; returns ``[sum(receive_rows), D]``
    grouped by source, same dtype and device. Not differentiable; see ``TokenExchange``.
    """
    if rows_SD.shape[0] != sum(send_rows):
        raise ValueError(
            f"{rows_SD.shape[0]} rows to send, but the splits {list(send_rows)} "
            f"add up to {sum(send_rows)}"
        )
    received_RD = rows_SD.new_empty(sum(receive_rows), *rows_SD.shape[1:])
    dist.all_to_all_single(
        received_RD, rows_SD.contiguous(), list(receive_rows), list(send_rows), group=group
    )
    return received_RD


class TokenExchange(torch.autograd.Function):
    """``exchange_rows`` with its backward pass, the exchange in the other direction.

    ``TokenExchange.apply(rows_SD, send_rows, receive_rows, group)``.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows_SD: torch.Tensor,
        send_rows: Sequence[int],
        receive_rows: Sequence[int],
        group: dist.ProcessGroup,
    ) -> torch.Tensor:
        ctx.send_rows, ctx.receive_rows, ctx.group = send_rows, receive_rows, group
        return exchange_rows(rows_SD, send_rows, receive_rows, group)

    @staticmethod
    def backward(ctx: Any, grad_RD: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        grad_SD = exchange_rows(grad_RD, ctx.receive_rows, ctx.send_rows, ctx.group)
        return grad_SD, None, None, None


def gather_counts(
    counts_E: torch.Tensor, group: dist.ProcessGroup, world_size: int
) -> torch.Tensor:
    """Every rank's tokens per expert: ``[E]`` int64 on each rank becomes ``[W, E]`` on all."""
    counts = counts_E.new_empty(world_size * counts_E.numel())
    dist.all_gather_single(counts, counts_E, group=group)
    return counts.view(world_size, -1)
