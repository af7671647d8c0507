"""One step's tokens of many sequences, packed, and where attention finds what came before them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from serving.memory.kv import PagedKV


@dataclass(frozen=True)
class Span:
    """Tokens ``[start, stop)`` of the packed row, at positions from ``position`` on.

    ``slots_L``: where the keys of positions ``0..position + stop - start`` lie.
    """

    start: int
    stop: int
    position: int
    slots_L: torch.Tensor


@dataclass(frozen=True)
class Batch:
    """What our attention reads beside queries, keys and values.

    The first ``num_decodes`` tokens are each the last of a sequence; ``decode_slots_SL`` says where
    its keys lie, padded with slot 0 past ``decode_lengths_S``. The others lie in ``spans``.
    ``write_slots_T``: where this step's own keys go. Without ``kv`` nothing is kept, and a span
    attends to itself alone, from position 0. ``masks`` are made once for all layers of a kind.
    """

    tokens_T: torch.Tensor
    positions_T: torch.Tensor
    write_slots_T: torch.Tensor
    num_decodes: int
    decode_slots_SL: torch.Tensor
    decode_lengths_S: torch.Tensor
    spans: tuple[Span, ...]
    kv: PagedKV | None
    masks: dict[tuple[int, int], torch.Tensor | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Piece:
    """Of one sequence: the tokens to compute, the first one's position, the blocks of all."""

    tokens: Sequence[int]
    position: int
    block_ids: Sequence[int]


def paged_batch(pieces: Sequence[Piece], kv: PagedKV, device: torch.device) -> Batch:
    """The batch of ``pieces``, those of one token first."""
    block_tokens = kv.block_tokens
    num_decodes = sum(len(piece.tokens) == 1 for piece in pieces)
    lengths = [piece.position + len(piece.tokens) for piece in pieces]
    width = max((len(piece.block_ids) for piece in pieces), default=0)
    table = torch.zeros(len(pieces), width, dtype=torch.int64)
    for row, piece in enumerate(pieces):
        table[row, : len(piece.block_ids)] = torch.tensor(piece.block_ids)
    slots = (table[..., None] * block_tokens + torch.arange(block_tokens)).flatten(1)
    spans: list[Span] = []
    write = [slots[:0, 0]]
    if num_decodes:
        ends = torch.tensor(lengths[:num_decodes])
        write.append(slots[:num_decodes].gather(1, ends[:, None] - 1)[:, 0])
    start = num_decodes
    for row in range(num_decodes, len(pieces)):
        piece = pieces[row]
        slots_L = slots[row, : lengths[row]]
        write.append(slots_L[piece.position :])
        stop = start + len(piece.tokens)
        spans.append(Span(start, stop, piece.position, slots_L.to(device)))
        start = stop
    longest = max(lengths[:num_decodes], default=0)
    decode_slots_SL = slots[:num_decodes, :longest]
    lengths_S = torch.tensor(lengths[:num_decodes], dtype=torch.int64)
    decode_slots_SL = decode_slots_SL.masked_fill(torch.arange(longest) >= lengths_S[:, None], 0)
    tokens = [token for piece in pieces for token in piece.tokens]
    positions = [
        p for piece in pieces for p in range(piece.position, piece.position + len(piece.tokens))
    ]
    return Batch(
        tokens_T=torch.tensor(tokens, device=device),
        positions_T=torch.tensor(positions, device=device),
        write_slots_T=torch.cat(write).to(device),
        num_decodes=num_decodes,
        decode_slots_SL=decode_slots_SL.to(device),
        decode_lengths_S=lengths_S.to(device),
        spans=tuple(spans),
        kv=kv,
    )


def whole_batch(prompts: Sequence[Sequence[int]], device: torch.device) -> Batch:
    """Prompts computed whole, of which no keys are kept."""
    none = torch.empty(0, dtype=torch.int64, device=device)
    spans: list[Span] = []
    for prompt in prompts:
        start = spans[-1].stop if spans else 0
        spans.append(Span(start, start + len(prompt), 0, none))
    return Batch(
        tokens_T=torch.tensor([token for prompt in prompts for token in prompt], device=device),
        positions_T=torch.cat([torch.arange(len(prompt)) for prompt in prompts]).to(device),
        write_slots_T=none,
        num_decodes=0,
        decode_slots_SL=none[None],
        decode_lengths_S=none,
        spans=tuple(spans),
        kv=None,
    )
