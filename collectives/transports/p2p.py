"""Point-to-point: each transfer is one message, straight from a row into a row.

No packing, no staging for a gather, and only the ranks of a transfer take part in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Sequence

import torch
import torch.distributed as dist

from collectives.schedule import Transfer
from collectives.transports.protocol import Launch, Steps
from collectives.transports.resources import LaunchResources
from collectives.transports.summation import add_in_order, add_into, sum_dtype

# Tags are 31 bits.
LAUNCHES_UNDER_WAY = 1 << 12
MESSAGES_OF_A_PAIR = 1 << 18

Place = tuple[int, int]  # layer, chunk
TensorOf = Callable[[Transfer], torch.Tensor]


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
        messages = _Messages(launch, self.resources.next_number())
        sent = yield from messages.carry(launch.row, launch.row)
        yield sent

    def reduce(self, launch: Launch) -> Steps:
        messages = _Messages(launch, self.resources.next_number())
        resources, rank = self.resources, launch.rank
        arrived: dict[Place, list[tuple[int, torch.Tensor]]] = {}
        totals: list[torch.Tensor] = []
        sums = _sums_sent(launch)

        def outgoing(item: Transfer) -> torch.Tensor:
            row, terms = launch.row(item), arrived.pop(_place(item), None)
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
            arrived.setdefault(_place(item), []).append((item.source, buffer))
            return buffer

        sent = yield from messages.carry(outgoing, incoming)
        for (layer, chunk), terms in arrived.items():
            add_into(launch.rows[layer][chunk], rank, terms, resources)
            _give_all(terms, resources)
        yield sent
        for total in totals:
            resources.give(total)


class _Messages:
    """This rank's messages of one launch, which carry its ``number`` in their tags.

    The k-th message from one rank to another has the k-th tag of this launch on both sides,
    whenever it is posted: a relay's message may leave after one of the next launch.
    """

    # Note [Relays]
    # -------------
    # Whoever passes a chunk on has received all there is of it in earlier rounds (from one rank in
    # a gather, from one or more in a reduction) and has not sent any of it before. On gloo each
    # message is a work of its own, and a relay passes on chunk by chunk. NCCL joins the messages
    # of a round into one kernel, and rounds follow one another on its stream.

    def __init__(self, launch: Launch, number: int) -> None:
        self._group = launch.group
        self._one_by_one = launch.device.type == "cpu"
        self._sends = launch.schedule.sends(launch.rank)
        self._receives = launch.schedule.receives(launch.rank)
        first_tag = number % LAUNCHES_UNDER_WAY * MESSAGES_OF_A_PAIR
        self._tags = _tags(self._sends, first_tag, lambda item: item.target)
        self._tags |= _tags(self._receives, first_tag, lambda item: item.source)

    def carry(
        self, outgoing: TensorOf, incoming: TensorOf
    ) -> Generator[Sequence[dist.Work], None, Sequence[dist.Work]]:
        """Receive into ``incoming(item)`` and send ``outgoing(item)``, asked for when it is there.

        At the end everything has arrived. Returns what is left to wait for: sends under way.
        """
        if not self._one_by_one:
            for sends, receives in zip(self._sends, self._receives, strict=True):
                yield self._post(receives, incoming, sends, outgoing)
            return ()
        arrivals = [item for receives in self._receives for item in receives]
        missing = Counter(map(_place, arrivals))
        free: list[Transfer] = []
        held_up: dict[Place, list[Transfer]] = {}
        for sends in self._sends:
            for item in sends:
                if missing[_place(item)]:
                    held_up.setdefault(_place(item), []).append(item)
                else:
                    free.append(item)
        works = self._post(arrivals, incoming, free, outgoing)
        received, sent = works[: len(arrivals)], works[len(arrivals) :]
        if not held_up:
            yield received
            return sent
        for item, work in zip(arrivals, received, strict=True):
            yield [work]
            missing[_place(item)] -= 1
            if not missing[_place(item)] and _place(item) in held_up:
                sent += self._post((), incoming, held_up.pop(_place(item)), outgoing)
        return sent

    def _post(
        self,
        receives: Sequence[Transfer],
        incoming: TensorOf,
        sends: Sequence[Transfer],
        outgoing: TensorOf,
    ) -> list[dist.Work]:
        """Works of the receives, then of the sends; on NCCL a single one for all.

        Receives are posted first: what arrives has somewhere to go, and gloo sends at once.
        """
        operations = [
            dist.P2POp(
                dist.irecv,
                incoming(item),
                group=self._group,
                tag=self._tags[item],
                group_peer=item.source,
            )
            for item in receives
        ]
        operations += [
            dist.P2POp(
                dist.isend,
                outgoing(item),
                group=self._group,
                tag=self._tags[item],
                group_peer=item.target,
            )
            for item in sends
        ]
        return dist.batch_isend_irecv(operations) if operations else []


def _place(item: Transfer) -> Place:
    return item.layer, item.chunk


def _tags(
    rounds: Sequence[Sequence[Transfer]], first_tag: int, peer_of: Callable[[Transfer], int]
) -> dict[Transfer, int]:
    """Tags counted up for each peer, in the order of the schedule."""
    tags: dict[Transfer, int] = {}
    counts: Counter[int] = Counter()
    for transfers in rounds:
        for item in transfers:
            peer = peer_of(item)
            tags[item] = first_tag + counts[peer]
            counts[peer] += 1
    return tags


def _give_all(terms: Sequence[tuple[int, torch.Tensor]], resources: LaunchResources) -> None:
    for _, buffer in terms:
        resources.give(buffer)


def _sums_sent(launch: Launch) -> frozenset[Transfer]:
    """What this rank receives from ranks that have added up others' rows before."""
    added: set[tuple[int, int, int]] = set()
    for transfers in launch.schedule.rounds[:-1]:
        added.update((item.layer, item.chunk, item.target) for item in transfers)
    return frozenset(
        item
        for transfers in launch.schedule.receives(launch.rank)
        for item in transfers
        if (item.layer, item.chunk, item.source) in added
    )
