"""One uneven all-to-all for a whole collective: rows are packed, exchanged and unpacked.

One launch whatever travels, at the price of two more copies of each byte.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist

from collectives.schedule import Transfer
from collectives.transports.protocol import Launch, Steps
from collectives.transports.resources import LaunchResources, as_bytes
from collectives.transports.summation import add_into

# Packed rows start at multiples of this, so that any dtype can be read in place.
ALIGNMENT_BYTES = 16


class AllToAllTransport:
    """``Transport`` of one ``all_to_all_single``; for flat schedules, of one round."""

    name = "all_to_all"
    hierarchical = False
    takes_everyone = True

    def __init__(self, resources: LaunchResources | None = None) -> None:
        self.resources = resources or LaunchResources()

    def gather(self, launch: Launch) -> Steps:
        exchange = _Exchange(launch, self.resources)
        if exchange.works:
            yield exchange.works
        for item, place in exchange.received:
            row = launch.row(item)
            as_bytes(row).copy_(place[: row.nbytes])
        exchange.give_back()

    def reduce(self, launch: Launch) -> Steps:
        exchange = _Exchange(launch, self.resources)
        if exchange.works:
            yield exchange.works
        arrived: dict[tuple[int, int], list[tuple[int, torch.Tensor]]] = {}
        for item, place in exchange.received:
            row = launch.row(item)
            value = place[: row.nbytes].view(row.dtype)
            arrived.setdefault((item.layer, item.chunk), []).append((item.source, value))
        for (layer, chunk), terms in arrived.items():
            add_into(launch.rows[layer][chunk], launch.rank, terms, self.resources)
        exchange.give_back()


class _Exchange:
    """The packed bytes of one launch on their way; ``received``: transfers and their places."""

    def __init__(self, launch: Launch, resources: LaunchResources) -> None:
        self._resources = resources
        self._buffers: tuple[torch.Tensor, ...] = ()
        self.works: list[dist.Work] = []
        self.received: list[tuple[Transfer, torch.Tensor]] = []
        rounds = launch.schedule.rounds
        if not rounds:
            return
        if len(rounds) > 1:
            raise ValueError(
                f"a schedule of {len(rounds)} rounds for one all-to-all; expected a flat one "
                "(gather_schedule with hierarchical=False)"
            )
        # Stable: the transfers between two ranks keep the order that both sides know.
        sends = sorted(launch.schedule.sends(launch.rank)[0], key=lambda item: item.target)
        receives = sorted(launch.schedule.receives(launch.rank)[0], key=lambda item: item.source)
        world_size = launch.schedule.world_size
        packed = resources.take(_total_bytes(launch, sends), torch.uint8, launch.device)
        for item, place in _places(launch, sends, packed):
            row = launch.row(item)
            place[: row.nbytes].copy_(as_bytes(row))
        landing = resources.take(_total_bytes(launch, receives), torch.uint8, launch.device)
        self.received = _places(launch, receives, landing)
        self._buffers = (packed, landing)
        work = dist.all_to_all_single(
            landing,
            packed,
            _bytes_by_rank(launch, [(item, item.source) for item in receives], world_size),
            _bytes_by_rank(launch, [(item, item.target) for item in sends], world_size),
            group=launch.group,
            async_op=True,
        )
        if work is not None:
            self.works.append(work)

    def give_back(self) -> None:
        for buffer in self._buffers:
            self._resources.give(buffer)


def _packed_bytes(launch: Launch, item: Transfer) -> int:
    return -(-launch.changes[item.layer].chunk_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def _total_bytes(launch: Launch, items: Sequence[Transfer]) -> int:
    return sum(_packed_bytes(launch, item) for item in items)


def _places(
    launch: Launch, items: Sequence[Transfer], buffer: torch.Tensor
) -> list[tuple[Transfer, torch.Tensor]]:
    sizes = [_packed_bytes(launch, item) for item in items]
    return list(zip(items, buffer.split(sizes), strict=True)) if items else []


def _bytes_by_rank(
    launch: Launch, peers: Sequence[tuple[Transfer, int]], world_size: int
) -> list[int]:
    sizes = [0] * world_size
    for item, peer in peers:
        sizes[peer] += _packed_bytes(launch, item)
    return sizes
