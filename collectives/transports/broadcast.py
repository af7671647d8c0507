"""Broadcasts and reductions over the whole group for chunks that nearly every rank needs.

The prototype of 2502.02581 is made of these alone. A broadcast is pipelined through the ranks, so
that an owner sends its row about once however many need it; ranks outside take part for nothing.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace

import torch
import torch.distributed as dist

from collectives.schedule import Schedule, nearly_everywhere
from collectives.transports.p2p import P2PTransport
from collectives.transports.protocol import Launch, Steps
from collectives.transports.resources import LaunchResources, as_bytes
from collectives.transports.summation import sum_dtype


class BroadcastTransport:
    """``Transport`` of a broadcast for each chunk of ``nearly_everywhere``, p2p for the others.

    Chunks that every single rank holds are reduced by the group too, which adds in the backend's
    order: the same each time, but not always that of the ranks. Low precision travels as float32.
    """

    name = "broadcast"
    hierarchical = False
    takes_everyone = True

    def __init__(self, resources: LaunchResources | None = None) -> None:
        self.resources = resources or LaunchResources()
        self._messages = P2PTransport(self.resources)

    def gather(self, launch: Launch) -> Steps:
        wide = _wide_chunks(launch)
        works: list[dist.Work] = []
        scratch: list[torch.Tensor] = []
        for layer, chunk in wide:
            change = launch.changes[layer]
            if launch.rank in change.after.holders[chunk]:
                row = launch.rows[layer][chunk]
            else:
                row = self.resources.take(change.chunk_bytes, torch.uint8, launch.device)
                scratch.append(row)
            work = dist.broadcast(
                as_bytes(row),
                group_src=change.before.owners[chunk],
                group=launch.group,
                async_op=True,
            )
            if work is not None:
                works.append(work)
        yield from self._messages.gather(_without(launch, set(wide)))
        yield works
        for buffer in scratch:
            self.resources.give(buffer)

    def reduce(self, launch: Launch) -> Steps:
        everywhere = [
            (layer, chunk)
            for layer, chunk in _wide_chunks(launch)
            if len(launch.changes[layer].after.holders[chunk]) == launch.schedule.world_size
        ]
        works: list[dist.Work] = []
        terms: list[tuple[int, int, torch.Tensor]] = []
        for layer, chunk in everywhere:
            row = launch.rows[layer][chunk]
            term = row
            if sum_dtype(row.dtype) != row.dtype:
                term = self.resources.take(row.numel(), torch.float32, row.device).copy_(row)
            terms.append((layer, chunk, term))
            work = dist.reduce(
                term,
                group_dst=launch.changes[layer].before.owners[chunk],
                group=launch.group,
                async_op=True,
            )
            if work is not None:
                works.append(work)
        yield from self._messages.reduce(_without(launch, set(everywhere)))
        yield works
        for layer, chunk, term in terms:
            row = launch.rows[layer][chunk]
            if term is not row:
                if launch.changes[layer].before.owners[chunk] == launch.rank:
                    row.copy_(term)
                self.resources.give(term)


def _wide_chunks(launch: Launch) -> list[tuple[int, int]]:
    """(layer, chunk) of what is broadcast, in the order in which every rank launches it."""
    return [
        (layer, chunk)
        for layer, change in enumerate(launch.changes)
        for chunk in nearly_everywhere(change)
    ]


def _without(launch: Launch, chunks: Set[tuple[int, int]]) -> Launch:
    """``launch`` without the transfers of ``chunks``, given as (layer, chunk)."""
    if not chunks:
        return launch
    kept = (
        tuple(item for item in transfers if (item.layer, item.chunk) not in chunks)
        for transfers in launch.schedule.rounds
    )
    rounds = tuple(transfers for transfers in kept if transfers)
    return replace(launch, schedule=Schedule(rounds, launch.schedule.world_size))
