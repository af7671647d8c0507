"""What can go wrong between ranks.

CollectiveError           a collective that did not happen
├── PlanDisagreement      ranks were about to launch different collectives
├── PeerLost              a rank died while others were waiting for it
└── CollectiveTimeout     a rank did not answer within the group's timeout

What one rank can see for itself (a row of the wrong size, a placement without an owner) is a
``ValueError`` before anything is launched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager


class CollectiveError(RuntimeError):
    """A collective that failed; a ``RuntimeError``, as torch's own failures are."""


class PlanDisagreement(CollectiveError):  # noqa: N818
    """Ranks planned different placements or transfers; raised alike on every one of them."""


class PeerLost(CollectiveError):  # noqa: N818
    """The connection to a rank is gone, most likely because the rank died."""


class CollectiveTimeout(CollectiveError):  # noqa: N818
    """Nothing came from a rank for as long as the group waits."""


LISTED = 8
_LOST = ("closed", "reset", "refused", "broken pipe", "aborted", "socket", "gloo/transport")
_SLOW = ("timed out", "timeout")


@contextmanager
def naming(what: Callable[[], str], rank: int) -> Iterator[None]:
    """Failures of the backend as errors that say which collective failed, on which rank.

    ``what()`` names the collective; only called where it failed.
    """
    try:
        yield
    except CollectiveError:
        raise
    except RuntimeError as error:
        text = (str(error).splitlines() or [""])[0].split(" This is typically")[0][:300]
        if any(word in text.lower() for word in _SLOW):
            raise CollectiveTimeout(
                f"rank {rank}: {what()} was not over within the group's timeout; another rank "
                f"hangs, or never launched it ({text})"
            ) from error
        if any(word in text.lower() for word in _LOST):
            raise PeerLost(
                f"rank {rank}: {what()} lost a rank, which most likely died; look for the first "
                f"error among the other ranks' output ({text})"
            ) from error
        raise


def listed(noun: str, names: Sequence[object]) -> str:
    """``layer a``, ``layers a, b``; of many the first few."""
    shown = ", ".join(map(str, names[:LISTED]))
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"{noun}{'s' if len(names) > 1 else ''} {shown}{more}"
