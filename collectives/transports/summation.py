"""How rows that arrived are added up: in float32 where they are of low precision, in order."""

from __future__ import annotations

import torch

from collectives.transports.resources import LaunchResources

LOW_PRECISION = (torch.bfloat16, torch.float16)
# On a CPU sums of low precision are made in blocks whose float32 stays in the cache.
BLOCK = 1 << 15


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """What rows of ``dtype`` are added up in."""
    return torch.float32 if dtype in LOW_PRECISION else dtype


def add_in_order(
    row: torch.Tensor,
    rank: int,
    arrived: list[tuple[int, torch.Tensor]],
    resources: LaunchResources,
) -> torch.Tensor:
    """``row`` of ``rank`` plus what arrived from other ranks, in ascending order of ranks.

    Returns the sum in ``sum_dtype``, where it is ``row``'s own in ``row`` itself, otherwise in a
    buffer of ``resources``. Tensors of ``arrived`` are overwritten.
    """
    terms = sorted([*arrived, (rank, row)], key=lambda term: term[0])
    total = terms[0][1]
    if sum_dtype(row.dtype) != row.dtype:
        total = resources.take(row.numel(), torch.float32, row.device)
        total.copy_(terms[0][1])
        for _, term in terms[1:]:
            total.add_(term)
    else:
        for _, term in terms[1:]:
            # a + b = b + a to the bit: from its own place on, the sum grows in the row.
            if term is row:
                torch.add(total, row, out=row)
                total = row
            else:
                total.add_(term)
    return total


def add_into(
    row: torch.Tensor,
    rank: int,
    arrived: list[tuple[int, torch.Tensor]],
    resources: LaunchResources,
) -> None:
    """``add_in_order`` whose sum ends in ``row``, rounded once where it is of low precision."""
    if sum_dtype(row.dtype) == row.dtype:
        add_in_order(row, rank, arrived, resources)
        return
    if len(arrived) == 1:
        # Adding two numbers of low precision, torch itself computes in float32 and rounds once.
        row.add_(arrived[0][1])
        return
    numel = row.numel()
    size = BLOCK if row.device.type == "cpu" else numel
    for start in range(0, numel, size):
        block = slice(start, start + size)
        parts = [(source, term[block]) for source, term in arrived]
        total = add_in_order(row[block], rank, parts, resources)
        row[block].copy_(total)
        resources.give(total)
