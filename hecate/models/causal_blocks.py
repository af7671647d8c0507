"""Causal attention of packed documents in query blocks, forward and backward.

A block of queries meets only the keys up to its own end, so that about half of the square is never
computed; each product is one batched GEMM over (document, head). The backward pass recomputes the
probabilities from the saved log-sum-exp, as FlashAttention does (2205.14135, algorithm 4).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

QUERY_BLOCK = 128


@dataclass(frozen=True)
class Spans:
    """Documents of one length at one place in their rows: rows, first token, one past the last."""

    rows: tuple[int, ...]
    start: int
    stop: int


def spans_of(lengths: Sequence[int], row_tokens: int) -> tuple[Spans, ...]:
    """Group run lengths over flattened rows by place; raises ``ValueError`` if a run crosses rows."""
    rows_at: dict[tuple[int, int], list[int]] = defaultdict(list)
    row, start = 0, 0
    for length in lengths:
        stop = start + length
        if stop > row_tokens:
            raise ValueError(
                f"a document of {length} tokens at token {start} of row {row} crosses the row's "
                f"end at {row_tokens}"
            )
        rows_at[start, stop].append(row)
        row, start = (row + 1, 0) if stop == row_tokens else (row, stop)
    return tuple(Spans(tuple(rows), *place) for place, rows in rows_at.items())


def causal_attention(
    query_BNSH: torch.Tensor,
    key_BMSH: torch.Tensor,
    value_BMSH: torch.Tensor,
    lengths: Sequence[int],
    scaling: float,
) -> torch.Tensor:
    """Attention within documents of ``lengths``; differentiable once; returns ``[B, S, N, H]``."""
    spans = spans_of(lengths, query_BNSH.shape[2])
    result: torch.Tensor = _CausalAttention.apply(  # type: ignore[no-untyped-call]
        query_BNSH, key_BMSH, value_BMSH, spans, scaling
    )
    return result


def _blocks(span: Spans) -> Iterator[tuple[int, int, int]]:
    """Query blocks as (first query, one past the last query, keys seen), relative to the span."""
    length = span.stop - span.start
    for first in range(0, length, QUERY_BLOCK):
        last = min(first + QUERY_BLOCK, length)
        yield first, last, last


def _gather(x_BNSH: torch.Tensor, span: Spans, repeats: int) -> torch.Tensor:
    """The span's tokens as contiguous ``[rows * N * repeats, L, H]``."""
    x = x_BNSH[:, :, span.start : span.stop]
    if len(span.rows) != x.shape[0]:
        x = x[list(span.rows)]
    if repeats > 1:
        x = x[:, :, None].expand(-1, -1, repeats, -1, -1)
    return x.reshape(-1, x.shape[-2], x.shape[-1])


def _mask_diagonal(scores: torch.Tensor, queries: int, triangle: torch.Tensor) -> None:
    scores[:, :, -queries:].masked_fill_(triangle[:queries, :queries], float("-inf"))


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        spans: tuple[Spans, ...],
        scaling: float,
    ) -> torch.Tensor:
        B, N, S, H = query.shape
        repeats, Hv = N // key.shape[1], value.shape[-1]
        out_BSNH = query.new_empty(B, S, N, Hv)
        logsums: list[torch.Tensor] = []
        triangle = _triangle(query.device)
        for span in spans:
            q, k, v = (
                _gather(query, span, 1),
                _gather(key, span, repeats),
                _gather(value, span, repeats),
            )
            out = torch.empty(q.shape[0], q.shape[1], Hv, dtype=q.dtype, device=q.device)
            logsum = torch.empty(q.shape[:2], dtype=_score_dtype(q.dtype), device=q.device)
            for first, last, seen in _blocks(span):
                scores = torch.bmm(q[:, first:last], k[:, :seen].transpose(1, 2))
                scores = scores.to(logsum.dtype).mul_(scaling)
                _mask_diagonal(scores, last - first, triangle)
                peak = scores.amax(-1, keepdim=True)
                scores.sub_(peak).exp_()
                total = scores.sum(-1, keepdim=True)
                logsum[:, first:last] = (peak + total.log()).squeeze(-1)
                weighted = torch.bmm(scores.to(q.dtype), v[:, :seen])
                torch.div(weighted, total.to(q.dtype), out=out[:, first:last])
            _scatter(out_BSNH, out, span)
            logsums.append(logsum)
        ctx.save_for_backward(query, key, value, out_BSNH, *logsums)
        ctx.spans, ctx.scaling = spans, scaling
        return out_BSNH

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_out_BSNH: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, out_BSNH, *logsums = ctx.saved_tensors
        repeats = query.shape[1] // key.shape[1]
        # [B, S, heads, H] in memory, seen as [B, heads, S, H]: what the projections' backward reads
        grads = [
            torch.empty_like(x.transpose(1, 2), memory_format=torch.contiguous_format)
            for x in (query, key, value)
        ]
        triangle = _triangle(query.device)
        for span, logsum in zip(ctx.spans, logsums, strict=True):
            q, k, v = (
                _gather(query, span, 1),
                _gather(key, span, repeats),
                _gather(value, span, repeats),
            )
            do = _gather(d_out_BSNH.transpose(1, 2), span, 1)
            out = _gather(out_BSNH.transpose(1, 2), span, 1)
            delta = (do * out).sum(-1, keepdim=True).to(logsum.dtype)
            dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
            for first, last, seen in _blocks(span):
                qb, dob = q[:, first:last], do[:, first:last]
                scores = (
                    torch.bmm(qb, k[:, :seen].transpose(1, 2)).to(logsum.dtype).mul_(ctx.scaling)
                )
                scores.sub_(logsum[:, first:last, None])
                _mask_diagonal(scores, last - first, triangle)
                p = scores.exp_()
                dv[:, :seen].baddbmm_(p.to(q.dtype).transpose(1, 2), dob)
                dp = torch.bmm(dob, v[:, :seen].transpose(1, 2)).to(logsum.dtype)
                ds = dp.sub_(delta[:, first:last]).mul_(p).mul_(ctx.scaling).to(q.dtype)
                torch.bmm(ds, k[:, :seen], out=dq[:, first:last])
                dk[:, :seen].baddbmm_(ds.transpose(1, 2), qb)
            for grad, own in zip(grads, (dq, dk, dv), strict=True):
                heads = grad.shape[2]
                _scatter(grad, own if own is dq else _sum_repeats(own, heads, len(span.rows)), span)
        return (*(grad.transpose(1, 2) for grad in grads), None, None)


def _scatter(x_BSNH: torch.Tensor, own: torch.Tensor, span: Spans) -> None:
    """Write ``[rows * N, L, H]`` back to the span's place in ``[B, S, N, H]``."""
    B, _, N, H = x_BSNH.shape
    own = own.view(len(span.rows), N, -1, H).transpose(1, 2)
    if len(span.rows) == B:
        x_BSNH[:, span.start : span.stop] = own
    else:
        x_BSNH[list(span.rows), span.start : span.stop] = own


def _sum_repeats(grad: torch.Tensor, heads: int, rows: int) -> torch.Tensor:
    """Sum the gradients of the query heads that share a key head."""
    repeats = grad.shape[0] // (rows * heads)
    if repeats == 1:
        return grad
    return grad.view(rows * heads, repeats, *grad.shape[1:]).sum(1)


def _score_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def _triangle(device: torch.device) -> torch.Tensor:
    """True where a key lies after its query, within one block."""
    return torch.ones(QUERY_BLOCK, QUERY_BLOCK, dtype=torch.bool, device=device).triu_(1)
