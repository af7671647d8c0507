"""Let every rank end alike: what fails on one rank is raised on all, as the same error."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch.distributed as dist

from hecate.errors import HecateError, StorageError
from hecate.mesh import naming

T = TypeVar("T")

_FIXES = {
    errno.ENOSPC: "free some space, lower checkpoint.keep, or put the run folder on another disk",
    errno.EDQUOT: "raise the quota, lower checkpoint.keep, or put the run folder on another disk",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f), or use another file system",
    errno.EACCES: "make the folder writable for this user, or choose another run folder",
    errno.EPERM: "make the folder writable for this user, or choose another run folder",
    errno.EROFS: "choose a run folder on a file system that can be written",
}


def gather(group: dist.ProcessGroup, what: str, value: T) -> list[T]:
    """Every rank's ``value``, by rank; ``what`` names it when a peer is gone."""
    values = [value] * group.size()
    if group.size() > 1:
        with naming(what, group.rank()):
            dist.all_gather_object(values, value, group=group)
    return values


@contextmanager
def together(group: dist.ProcessGroup, what: str) -> Iterator[None]:
    """Run the block on every rank, and leave it with the same error on all if any rank failed.

    The block must hold no collective. An ``OSError`` becomes a ``StorageError``, an error that is
    none of ours a ``HecateError`` with its text; the lowest failing rank's one is raised.
    """
    own: Exception | None = None
    told: HecateError | None = None
    try:
        yield
    except Exception as error:
        own, told = error, as_ours(error, what, group.rank())
    errors = [error for error in gather(group, what, told) if error is not None]
    if errors:
        raise errors[0] from (own if own is not told else None)


def as_ours(error: Exception, what: str, rank: int) -> HecateError:
    """``error`` of ``rank`` as an error that says what failed and can travel to other ranks."""
    if isinstance(error, HecateError):
        return error
    if isinstance(error, OSError):
        return StorageError(
            f"{what} failed on rank {rank}",
            got=str(error),
            expected="a file system that takes it",
            fix=_FIXES.get(error.errno or 0, "see to the file system, then start again"),
        )
    return HecateError(f"{what} failed on rank {rank}", got=f"{type(error).__name__}: {error}")
