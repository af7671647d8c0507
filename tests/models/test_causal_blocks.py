"""Packed causal attention against one plain call for each document, values and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hecate.models.causal_blocks import LEAF_TOKENS, causal_attention, parts_of, spans_of

Lengths = list[list[int]]  # of the documents, row by row


def packed_inputs(
    rows: Lengths,
    *,
    heads: int = 2,
    kv_heads: int = 2,
    head_dim: int = 8,
    value_dim: int = 8,
    dtype: torch.dtype = torch.float64,
) -> list[torch.Tensor]:
    """Query, key, value and the gradient of the output, ``[B, heads, S, head dim]``."""
    generator = torch.Generator().manual_seed(len(rows) + sum(rows[0]))
    B, S = len(rows), sum(rows[0])
    shapes = [
        (B, heads, S, head_dim),
        (B, kv_heads, S, head_dim),
        (B, kv_heads, S, value_dim),
        (B, S, heads, value_dim),
    ]
    tensors = [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]
    return [t.requires_grad_() for t in tensors[:3]] + tensors[3:]


def one_document_at_a_time(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rows: Lengths, scaling: float
) -> torch.Tensor:
    """Softmax over an explicit mask, one document of one row after another; ``[B, S, N, H]``."""
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    finished = []
    for row, lengths in enumerate(rows):
        start, documents = 0, []
        for length in lengths:
            tokens = slice(start, start + length)
            scores = query[row, :, tokens] @ key[row, :, tokens].transpose(1, 2) * scaling
            ahead = torch.ones(length, length, dtype=torch.bool).triu(1)
            weights = scores.masked_fill(ahead, float("-inf")).softmax(-1)
            documents.append(weights @ value[row, :, tokens])
            start += length
        finished.append(torch.cat(documents, 1))
    return torch.stack(finished).transpose(1, 2)


def flat(rows: Lengths) -> list[int]:
    return [length for lengths in rows for length in lengths]


LONG = 2 * LEAF_TOKENS + 7

CASES = {
    "one document a row": ([[24], [24]], {}),
    "one token": ([[1]], {}),
    "every document one token": ([[1] * 5], {}),
    "a token at either end": ([[1, 10, 1]], {}),
    "rows split alike": ([[5, 7], [5, 7], [5, 7]], {}),
    "rows split differently": ([[12], [5, 7], [1, 11], [12]], {}),
    "alike at uneven distances": ([[4, 4], [4, 4], [8], [4, 4]], {}),
    "a shared place in some rows": ([[3, 4, 2], [1, 2, 4, 2], [9]], {}),
    "a leaf exactly": ([[LEAF_TOKENS]], {}),
    "one more than a leaf": ([[LEAF_TOKENS + 1]], {}),
    "twice a leaf and one": ([[2 * LEAF_TOKENS + 1]], {}),
    "five leaves": ([[5 * LEAF_TOKENS + 3]], {}),
    "long and short together": ([[LONG, 1, 9], [3, LONG, 7], [LONG, 1, 9]], {}),
    "grouped queries": ([[6, 3], [9]], {"heads": 6, "kv_heads": 2}),
    "one key head": ([[LONG], [LONG]], {"heads": 3, "kv_heads": 1}),
    "narrow values": ([[6, 3]], {"value_dim": 5}),
    "narrow values, long, grouped": ([[LONG]], {"heads": 4, "kv_heads": 2, "value_dim": 3}),
    "wide values": ([[6, 3]], {"value_dim": 12}),
    "wide values, long": ([[LONG]], {"value_dim": 13}),
}


@pytest.mark.parametrize(("rows", "shapes"), CASES.values(), ids=CASES)
def test_fp64_equals_each_document_alone(rows, shapes):
    *inputs, d_out = packed_inputs(rows, **shapes)
    out = causal_attention(*inputs, flat(rows), 0.3)
    expected = one_document_at_a_time(*inputs, rows, 0.3)
    assert out.shape == expected.shape
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    ours = torch.autograd.grad(out, inputs, d_out)
    theirs = torch.autograd.grad(expected, inputs, d_out)
    for name, got, want in zip(("query", "key", "value"), ours, theirs, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11, msg=lambda m, n=name: n + m)


def test_it_is_pytorchs_attention_where_a_row_is_one_document():
    *inputs, d_out = packed_inputs([[LONG]] * 2, heads=4, kv_heads=2)
    query, key, value = inputs
    out = causal_attention(*inputs, [LONG, LONG], 8**-0.5)
    theirs = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(out, theirs.transpose(1, 2), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)], ids=["fp32", "bf16"]
)
@pytest.mark.parametrize("name", ["rows split differently", "long and short together"])
def test_narrower_dtypes_stay_within_their_rounding(name, dtype, tolerance):
    """Relative to the largest element: bf16 holds 8 bits, of which sums of parts lose two."""
    rows, _ = CASES[name]
    *inputs, d_out = packed_inputs(rows, dtype=dtype, heads=4, kv_heads=2)
    wide = [x.detach().double().requires_grad_() for x in inputs]
    out = causal_attention(*inputs, flat(rows), 0.3)
    expected = one_document_at_a_time(*wide, rows, 0.3)
    ours = torch.autograd.grad(out, inputs, d_out)
    theirs = torch.autograd.grad(expected, wide, d_out.double())
    for got, want in zip((out, *ours), (expected, *theirs), strict=True):
        assert got.dtype == dtype
        assert (got.double() - want).abs().max() <= tolerance * want.abs().max()


def test_large_scores_do_not_overflow():
    rows = [[LONG]]
    *inputs, d_out = packed_inputs(rows)
    out = causal_attention(*inputs, [LONG], 400.0)
    torch.testing.assert_close(out, one_document_at_a_time(*inputs, rows, 400.0))
    for grad in torch.autograd.grad(out, inputs, d_out):
        assert bool(grad.isfinite().all())


def test_gradients_agree_with_finite_differences():
    rows = [[2, 1], [3]]
    *inputs, _ = packed_inputs(rows, heads=2, kv_heads=1, head_dim=3, value_dim=2)
    lengths = flat(rows)
    assert torch.autograd.gradcheck(lambda q, k, v: causal_attention(q, k, v, lengths, 0.7), inputs)


def test_gradients_across_parts_agree_with_finite_differences():
    length = LEAF_TOKENS + 2
    *inputs, _ = packed_inputs([[length]], heads=1, kv_heads=1, head_dim=2, value_dim=2)
    assert torch.autograd.gradcheck(
        lambda q, k, v: causal_attention(q, k, v, [length], 0.7), inputs, fast_mode=True
    )


def test_strided_inputs_give_what_contiguous_ones_give():
    """Projections hand over ``[B, S, N, H]`` seen as ``[B, N, S, H]``."""
    *inputs, d_out = packed_inputs([[LONG, 5], [5, LONG]])
    lengths = [LONG, 5, 5, LONG]
    strided = [
        x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for x in inputs
    ]
    out, again = causal_attention(*inputs, lengths, 0.3), causal_attention(*strided, lengths, 0.3)
    assert torch.equal(out, again)
    ours = torch.autograd.grad(out, inputs, d_out)
    d_strided = d_out.transpose(1, 2).contiguous().transpose(1, 2)
    for got, want in zip(torch.autograd.grad(again, strided, d_strided), ours, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-13)


def test_what_a_document_computes_does_not_depend_on_its_row_mates():
    query, key, value, _ = packed_inputs([[LONG, 20]], dtype=torch.float32)
    before = causal_attention(query, key, value, [LONG, 20], 0.3)
    with torch.no_grad():
        for x in (query, key, value):
            x[:, :, :LONG] = torch.randn(1, 2, LONG, 8)
    after = causal_attention(query, key, value, [LONG, 20], 0.3)
    assert torch.equal(before[:, LONG:], after[:, LONG:])
    assert not torch.equal(before[:, :LONG], after[:, :LONG])


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        pytest.param([5, 3, 8], "3 tokens at token 5 of row 0", id="across a row's end"),
        pytest.param([6, 7], "7 tokens at token 0 of row 1", id="longer than a row"),
        pytest.param([3, 0, 3], "0 tokens at token 3 of row 0", id="empty"),
    ],
)
def test_a_document_that_does_not_lie_within_a_row_is_refused(lengths, message):
    with pytest.raises(ValueError, match=message):
        spans_of(lengths, 6)


def test_lengths_that_leave_tokens_out_are_refused():
    """Otherwise their outputs would be whatever lay in memory."""
    query, key, value, _ = packed_inputs([[6], [6]])
    for lengths in ([6], [6, 4], [6, 6, 6]):
        with pytest.raises(ValueError):
            causal_attention(query, key, value, lengths, 0.3)


def rows_of(rows: slice | list[int]) -> list[int]:
    return list(range(rows.start, rows.stop, rows.step)) if isinstance(rows, slice) else rows


def test_documents_at_one_place_share_a_span():
    spans = spans_of([4, 2, 6, 4, 2, 4, 2], 6)
    assert [(rows_of(span.rows), span.start, span.stop) for span in spans] == [
        ([0, 2, 3], 0, 4),
        ([0, 2, 3], 4, 6),
        ([1], 0, 6),
    ]


@given(st.lists(st.lists(st.booleans(), min_size=11, max_size=11), min_size=1, max_size=5))
def test_spans_cover_every_token_once(cuts):
    """Rows of 12 tokens, cut wherever a row's flags say."""
    rows = []
    for flags in cuts:
        ends = [i + 1 for i, cut in enumerate(flags) if cut] + [12]
        rows.append([stop - start for start, stop in zip([0, *ends], ends, strict=False)])
    seen = torch.zeros(len(rows), 12, dtype=torch.int64)
    found = set()
    for span in spans_of(flat(rows), 12):
        for row in rows_of(span.rows):
            seen[row, span.start : span.stop] += 1
            found.add((row, span.start, span.stop))
    assert bool((seen == 1).all())
    assert len(found) == len(flat(rows))


@settings(max_examples=50)
@given(start=st.integers(0, 5), length=st.integers(1, 6 * LEAF_TOKENS))
def test_parts_cover_the_causal_triangle_once_and_each_querys_diagonal_first(start, length):
    seen = torch.zeros(length, length, dtype=torch.int64)
    begun = torch.zeros(length, dtype=torch.bool)
    for part in parts_of(start, start + length):
        queries = slice(part.q_start - start, part.q_stop - start)
        keys = slice(part.k_start - start, part.k_stop - start)
        square = torch.ones(part.q_stop - part.q_start, part.k_stop - part.k_start).long()
        seen[queries, keys] += square.tril() if part.causal else square
        assert bool(begun[queries].all()) != part.causal
        begun[queries] = True
    assert torch.equal(seen, torch.ones(length, length).long().tril())
