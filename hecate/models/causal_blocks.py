"""Causal attention of packed documents on a CPU, computing no block of keys that lies ahead.

PyTorch's CPU kernel computes the whole square of a causal call and masks half of it. Here a
document is cut in two: each half attends to itself (recursively), and the second half attends to
the first, all of it, with no mask. The parts of a query are merged by their log-sum-exp, and the
backward pass runs the kernel's own on each part with the merged one (FlashAttention, 2205.14135,
section 3.1 and algorithm 4). Work falls to ``1/2 + LEAF_TOKENS / 2S`` of the square.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

LEAF_TOKENS = 256  # below it the kernel loses more speed than the skipped keys save

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class Span:
    """Documents of one length at one place in their rows: the rows, and where they begin and end.

    ``rows`` is a slice where they lie at equal distances, so that reading them copies nothing.
    """

    rows: slice | list[int]
    start: int
    stop: int


@dataclass(frozen=True)
class Part:
    """Queries ``[q_start, q_stop)`` against keys ``[k_start, k_stop)``, causal on the diagonal."""

    q_start: int
    q_stop: int
    k_start: int
    k_stop: int

    @property
    def causal(self) -> bool:
        return self.q_start == self.k_start


def spans_of(lengths: Sequence[int], row_tokens: int) -> tuple[Span, ...]:
    """Group run lengths over flattened rows by place; ``ValueError`` if a run crosses rows."""
    rows_at: dict[tuple[int, int], list[int]] = defaultdict(list)
    row, start = 0, 0
    for length in lengths:
        stop = start + length
        if length < 1 or stop > row_tokens:
            raise ValueError(
                f"a document of {length} tokens at token {start} of row {row} does not lie within "
                f"a row of {row_tokens}"
            )
        rows_at[start, stop].append(row)
        row, start = (row + 1, 0) if stop == row_tokens else (row, stop)
    return tuple(Span(_evenly(rows), *place) for place, rows in rows_at.items())


def _evenly(rows: list[int]) -> slice | list[int]:
    step = rows[1] - rows[0] if len(rows) > 1 else 1
    even = slice(rows[0], rows[-1] + 1, step)
    return even if list(range(even.start, even.stop, step)) == rows else rows


def parts_of(start: int, stop: int) -> Iterator[Part]:
    """The parts of one document, a query's diagonal part before the others."""
    if stop - start <= LEAF_TOKENS:
        yield Part(start, stop, start, stop)
        return
    middle = start + (stop - start) // 2
    yield from parts_of(start, middle)
    yield from parts_of(middle, stop)
    yield Part(middle, stop, start, middle)


def causal_attention(
    query_BNSH: torch.Tensor,
    key_BMSH: torch.Tensor,
    value_BMSH: torch.Tensor,
    lengths: Sequence[int],
    scaling: float,
) -> torch.Tensor:
    """Attention within documents of ``lengths`` over the flattened ``B * S`` tokens.

    CPU tensors; ``N`` is a multiple of ``M``; the value's head dim may differ from the query's.
    Returns ``[B, S, N, H of value]``; differentiable once. Raises ``ValueError`` for lengths that
    do not add up to the tokens, or a document that crosses rows.
    """
    B, N, S, H = query_BNSH.shape
    if sum(lengths) != B * S:
        raise ValueError(
            f"documents of {sum(lengths)} tokens in {B} rows of {S}; expected {B * S} in all"
        )
    repeats = N // key_BMSH.shape[1]
    if repeats > 1:
        key_BMSH = key_BMSH.repeat_interleave(repeats, 1)
        value_BMSH = value_BMSH.repeat_interleave(repeats, 1)
    width = value_BMSH.shape[-1]
    if width < H:  # the kernel wants one head dim; zeros change neither scores nor sums
        value_BMSH = F.pad(value_BMSH, (0, H - width))
    elif width > H:
        query_BNSH, key_BMSH = (F.pad(x, (0, width - H)) for x in (query_BNSH, key_BMSH))
    out_BNSH: torch.Tensor = _CausalAttention.apply(  # type: ignore[no-untyped-call]
        query_BNSH, key_BMSH, value_BMSH, spans_of(lengths, S), scaling
    )
    out_BSNH = out_BNSH.transpose(1, 2)
    return out_BSNH[..., :width] if width < H else out_BSNH


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        spans: tuple[Span, ...],
        scaling: float,
    ) -> torch.Tensor:
        B, N, S, H = query.shape  # keys and values of fewer heads are the kernel's to share
        out = query.new_empty(B, S, N, H).transpose(1, 2)
        logsum = query.new_empty(B, N, S, dtype=_sum_dtype(query.dtype))
        for span in spans:
            q, k, v = query[span.rows], key[span.rows], value[span.rows]
            for part in parts_of(span.start, span.stop):
                queries = slice(part.q_start, part.q_stop)
                keys = slice(part.k_start, part.k_stop)
                own, own_logsum = _forward(
                    q[:, :, queries], k[:, :, keys], v[:, :, keys], 0.0, part.causal, scale=scaling
                )
                if part.causal:
                    out[span.rows, :, queries] = own
                    logsum[span.rows, :, queries] = own_logsum
                    continue
                before, before_logsum = out[span.rows, :, queries], logsum[span.rows, :, queries]
                merged = torch.logaddexp(before_logsum, own_logsum)
                share = (own_logsum - merged).exp_()[..., None].to(own.dtype)
                out[span.rows, :, queries] = torch.lerp(before, own, share)
                logsum[span.rows, :, queries] = merged
        ctx.save_for_backward(query, key, value, out, logsum)
        ctx.spans, ctx.scaling = spans, scaling
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_out: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, out, logsum = ctx.saved_tensors
        d_query, d_key, d_value = (
            torch.empty_like(x.transpose(1, 2)).transpose(1, 2) for x in (query, key, value)
        )
        for span in ctx.spans:
            rows = span.rows
            q, k, v, o, do = query[rows], key[rows], value[rows], out[rows], d_out[rows]
            for part in parts_of(span.start, span.stop):
                queries = slice(part.q_start, part.q_stop)
                keys = slice(part.k_start, part.k_stop)
                dq, dk, dv = _backward(
                    do[:, :, queries],
                    q[:, :, queries],
                    k[:, :, keys],
                    v[:, :, keys],
                    o[:, :, queries],
                    logsum[rows, :, queries].contiguous(),
                    0.0,
                    part.causal,
                    scale=ctx.scaling,
                )
                if part.causal:
                    d_query[rows, :, queries] = dq
                    d_key[rows, :, keys] = dk
                    d_value[rows, :, keys] = dv
                else:
                    d_query[rows, :, queries] += dq
                    d_key[rows, :, keys] += dk
                    d_value[rows, :, keys] += dv
        return d_query, d_key, d_value, None, None


def _sum_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
