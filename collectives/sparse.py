"""Sparse all-gather and its mirror, sparse reduce-scatter (2502.02581, section 3.1).

``spAG`` takes a partition to a placement that contains it: every new holder of a chunk gets its
owner's row. ``spRS`` takes such a placement back: every owner gets the sum over all holders. Both
take any number of layers in one launch, return at once, and are each other's adjoint.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.distributed as dist

from collectives.handle import Handle
from collectives.schedule import Change, Schedule, layer_name
from collectives.transports.protocol import Launch, Rows, Transport

__all__ = ["Handle", "Rows", "sparse_all_gather", "sparse_reduce_scatter"]


def sparse_all_gather(
    rows: Sequence[Rows],
    changes: Sequence[Change],
    *,
    schedule: Schedule,
    transport: Transport,
    group: dist.ProcessGroup,
    rank: int,
) -> Handle:
    """Copy chunks from their owners to every new holder; all layers of ``changes`` at once.

    ``rows[layer]``: chunk id -> this rank's row of it, contiguous ``[C]``, any dtype, on the
    group's device; rows of owned chunks hold values, those of new copies are filled in place and
    may be slots of a larger buffer. Rows of chunks that do not travel may be left out. ``schedule``
    is ``gather_schedule(changes, ...)``; ``rank`` is this process's in ``group``.

    All ranks call this in the same order, also those that have nothing to do. No row may be changed
    or read before ``wait()``. Raises ``ValueError`` for rows that do not fit ``changes``.
    """
    launch = _checked("gather", rows, changes, schedule, group, rank)
    return Handle("sparse all-gather", launch, transport, transport.gather(launch))


def sparse_reduce_scatter(
    rows: Sequence[Rows],
    changes: Sequence[Change],
    *,
    schedule: Schedule,
    transport: Transport,
    group: dist.ProcessGroup,
    rank: int,
) -> Handle:
    """Add every chunk up over its holders, into its owner's row: the mirror of the gather.

    ``changes`` are those of the gather and ``schedule`` is ``reduce_schedule(changes, ...)``. After
    ``wait()`` each owner's row is the sum over all holders in ascending order of ranks (of nodes'
    sums, where the schedule has two levels), accumulated in float32 for bfloat16 and float16 and
    rounded once. What other holders' rows contain is then unspecified. Otherwise as
    ``sparse_all_gather``; give it a process group of its own, or it queues behind the gathers.
    """
    launch = _checked("reduction", rows, changes, schedule, group, rank)
    return Handle("sparse reduce-scatter", launch, transport, transport.reduce(launch))


def _checked(
    what: str,
    rows: Sequence[Rows],
    changes: Sequence[Change],
    schedule: Schedule,
    group: dist.ProcessGroup,
    rank: int,
) -> Launch:
    """The launch, if this rank has a row of the right size for each transfer that it is part of."""
    if len(rows) != len(changes):
        raise ValueError(
            f"rank {rank}: rows of {len(rows)} layers for a {what} of {len(changes)} changes; "
            "expected one mapping of rows for each change"
        )
    for side in (schedule.sends(rank), schedule.receives(rank)):
        for transfers in side:
            for item in transfers:
                row = rows[item.layer].get(item.chunk)
                if row is None:
                    raise ValueError(
                        f"rank {rank}: no row of chunk {item.chunk} of layer "
                        f"{layer_name(changes, item.layer)}, which travels from rank {item.source} "
                        f"to rank {item.target} in this {what}"
                    )
                expected = changes[item.layer].chunk_bytes
                found = row.numel() * row.element_size()
                if found != expected or row.dim() != 1 or not row.is_contiguous():
                    raise ValueError(
                        f"rank {rank}: the row of chunk {item.chunk} of layer "
                        f"{layer_name(changes, item.layer)} is a "
                        f"{'' if row.is_contiguous() else 'strided '}tensor of shape "
                        f"{tuple(row.shape)} and {found} bytes; expected a contiguous [C] of "
                        f"{expected} bytes"
                    )
    return Launch(rows, changes, schedule, group, rank)
