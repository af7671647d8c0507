"""Batched point-to-point: each transfer is one message, straight from a row into a row.

No packing, no staging for a gather, and only the ranks of a transfer take part in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist

from collectives.schedule import Transfer
from collectives.transports.protocol import Launch, Steps
from collectives.transports.resources import LaunchResources
from collectives.transports.summation import add_in_order, add_into, sum_dtype

# Tags are 31 bits.
LAUNCHES_UNDER_WAY = 1 << 12
MESSAGES_OF_A_PAIR = 1 << 18


class P2PTransport:
    """``Transport`` of one message for each transfer.

    On NCCL a group's first operation must be one in which all ranks take part (``agree`` is one).
    """

    name = "p2p"
    hierarchical = False
    takes_everyone = False

    def __init__(self, resources: LaunchResources | None = None) -> None:
        self.resources = resources or LaunchResources()

    def gather(self, launch: Launch) -> Steps:
        batches = _Batches(launch, self.resources.next_number())
        for sends, receives in batches.rounds:
            yield batches.post(sends, launch.row, receives, launch.row)
        yield batches.sent

    def reduce(self, launch: Launch) -> Steps:
        batches = _Batches(launch, self.resources.next_number())
        resources, rank = self.resources, launch.rank
        arrived: dict[tuple[int, int], list[tuple[int, torch.Tensor]]] = {}
        totals: list[torch.Tensor] = []
        sums = _sums_sent(launch)

        def outgoing(item: Transfer) -> torch.Tensor:
            row, terms = launch.row(item), arrived.pop((item.layer, item.chunk), None)
            if not terms:
                return row
            # A sum of low precision travels as float32, so that it is rounded once, at the owner:
            # no more bytes than the two or more rows that it stands for.
            total = add_in_order(row, rank, terms, resources)
            _give_all(terms, resources)
            if total is not row:
                totals.append(total)
            return total

        def incoming(item: Transfer) -> torch.Tensor:
            row = launch.row(item)
            dtype = sum_dtype(row.dtype) if item in sums else row.dtype
            buffer = resources.take(row.numel(), dtype, row.device)
            arrived.setdefault((item.layer, item.chunk), []).append((item.source, buffer))
            return buffer

        for sends, receives in batches.rounds:
            yield batches.post(sends, outgoing, receives, incoming)
        for (layer, chunk), terms in arrived.items():
            add_into(launch.rows[layer][chunk], rank, terms, resources)
            _give_all(terms, resources)
        yield batches.sent
        for total in totals:
            resources.give(total)


def _give_all(terms: Sequence[tuple[int, torch.Tensor]], resources: LaunchResources) -> None:
    for _, buffer in terms:
        resources.give(buffer)


class _Batches:
    """The messages of one launch by round; ``sent`` holds sends that nothing has waited for."""

    def __init__(self, launch: Launch, number: int) -> None:
        self._group = launch.group
        self._first_tag = number % LAUNCHES_UNDER_WAY * MESSAGES_OF_A_PAIR
        self.rounds = list(
            zip(
                launch.schedule.sends(launch.rank),
                launch.schedule.receives(launch.rank),
                strict=True,
            )
        )
        self.sent: list[dist.Work] = []
        self._sent_to: dict[int, int] = {}
        self._received_from: dict[int, int] = {}

    def post(
        self,
        sends: Sequence[Transfer],
        outgoing: Callable[[Transfer], torch.Tensor],
        receives: Sequence[Transfer],
        incoming: Callable[[Transfer], torch.Tensor],
    ) -> list[dist.Work]:
        """Launch one round; what it returns must be over before the next one.

        The k-th message from one rank to another has the k-th tag of this launch on both sides: a
        relay's message may leave after one of the next launch. Receives are posted first, so that
        data has somewhere to go when it arrives.
        """
        if not (sends or receives):
            return []
        operations = []
        for item in receives:
            tag = self._received_from.get(item.source, self._first_tag)
            self._received_from[item.source] = tag + 1
            operations.append(
                dist.P2POp(
                    dist.irecv, incoming(item), group=self._group, tag=tag, group_peer=item.source
                )
            )
        for item in sends:
            tag = self._sent_to.get(item.target, self._first_tag)
            self._sent_to[item.target] = tag + 1
            operations.append(
                dist.P2POp(
                    dist.isend, outgoing(item), group=self._group, tag=tag, group_peer=item.target
                )
            )
        works = dist.batch_isend_irecv(operations)
        if len(works) != len(operations):
            return works  # NCCL: one work for the whole batch
        # The next round depends on what arrived, not on whether what was sent has left.
        self.sent += works[len(receives) :]
        return works[: len(receives)]


def _sums_sent(launch: Launch) -> frozenset[Transfer]:
    """What this rank receives from ranks that have added up others' rows before."""
    added: set[tuple[int, int, int]] = set()
    sums: set[Transfer] = set()
    for transfers in launch.schedule.rounds[:-1] if launch.schedule.rounds else ():
        added.update((item.layer, item.chunk, item.target) for item in transfers)
    if added:
        for transfers in launch.schedule.receives(launch.rank):
            sums.update(
                item for item in transfers if (item.layer, item.chunk, item.source) in added
            )
    return frozenset(sums)
