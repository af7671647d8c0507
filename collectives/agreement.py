"""Whether all ranks are about to do the same: their plans compared before anything is launched."""

from __future__ import annotations

import hashlib
import struct
from collections import Counter
from collections.abc import Sequence

import torch
import torch.distributed as dist

from collectives.errors import PlanDisagreement, listed, naming


def digest_of(numbers: Sequence[int]) -> int:
    """63 bits that stand for whole numbers of up to 64 bits, the same on every machine."""
    packed = struct.pack(f"<{len(numbers)}q", *numbers)
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little") >> 1


def agree(
    digest: int,
    what: Sequence[int],
    group: dist.ProcessGroup,
    rank: int,
    world_size: int,
    *,
    device: torch.device,
    layers: Sequence[str] = (),
) -> None:
    """Return if every rank came with the same ``digest``; otherwise raise on every one of them.

    ``digest`` stands for the whole plan and ``what[layer]`` for each layer of it, as
    ``Schedule.digest`` and ``Change.digest`` make them: 63 bits. ``layers``: what the error calls
    each layer, instead of its number. One collective of two integers a rank where all agree; a
    second one, where they do not, finds the layers.

    Raises ``PlanDisagreement`` with the same layers and ranks named on all ranks, and what a
    collective raises where a rank died or does not answer.
    """
    with naming(lambda: f"the agreement on plans of {_all_layers(what, layers)}", rank):
        heads = _gather([digest, len(what)], group, world_size, device)
        if all(head == heads[0] for head in heads):
            return
        longest = max(length for _, length in heads)
        padded = [*what, *[0] * (longest - len(what))]
        found = _gather(padded, group, world_size, device) if longest else [[]] * world_size
    raise PlanDisagreement(_difference(rank, heads, found, layers))


def _gather(
    numbers: Sequence[int], group: dist.ProcessGroup, world_size: int, device: torch.device
) -> list[list[int]]:
    own = torch.tensor(list(numbers), dtype=torch.int64, device=device)
    every = own.new_empty(world_size * own.numel())
    dist.all_gather_single(every, own, group=group)
    found: list[list[int]] = every.view(world_size, -1).tolist()
    return found


def _all_layers(what: Sequence[int], layers: Sequence[str]) -> str:
    return listed("layer", layers) if layers else f"{len(what)} layers"


def _difference(
    rank: int, heads: list[list[int]], found: list[list[int]], layers: Sequence[str]
) -> str:
    """What differs from the plan that most ranks have; of equals, that of the lowest rank."""
    lengths = [length for _, length in heads]
    if len(set(lengths)) > 1:
        text = f"plans of {_by_ranks(lengths, 'layers')}"
    else:
        parts = [
            f"layer {layers[layer] if layers else layer} on {listed('rank', odd)}"
            for layer in range(lengths[0])
            if (odd := _odd_ones([digests[layer] for digests in found]))
        ]
        odd = _odd_ones([digest for digest, _ in heads])
        text = (
            "; ".join(parts)
            or f"the same layers, but not the same transfers, on {listed('rank', odd)}"
        )
        text = f"another plan than most: {text}"
    return (
        f"rank {rank}: the ranks are about to launch different collectives: {text}; "
        "expected the same plan on every rank. All must plan from the same numbers: look for "
        "loads, bandwidths or settings that differ between them"
    )


def _odd_ones(values: Sequence[int]) -> list[int]:
    """The ranks whose value is not the most frequent one; of equals, the lowest rank's wins."""
    counts = Counter(values)
    usual = max(values, key=lambda value: (counts[value], -values.index(value)))
    return [rank for rank, value in enumerate(values) if value != usual]


def _by_ranks(values: Sequence[int], noun: str) -> str:
    return ", ".join(
        f"{value} {noun} on {listed('rank', _ranks_of(values, value))}"
        for value in dict.fromkeys(values)
    )


def _ranks_of(values: Sequence[int], value: int) -> list[int]:
    return [rank for rank, other in enumerate(values) if other == value]
