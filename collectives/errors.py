"""What can go wrong between ranks.

CollectiveError           a collective that did not happen
├── PlanDisagreement      ranks were about to launch different collectives
├── PeerLost              a rank died while others were waiting for it
└── CollectiveTimeout     a rank did not answer within the group's timeout

What one rank can see for itself (a row of the wrong size, a placement without an owner) is a
``ValueError`` before anything is launched.
"""

from __future__ import annotations


class CollectiveError(RuntimeError):
    """A collective that failed; a ``RuntimeError``, as torch's own failures are."""


class PlanDisagreement(CollectiveError):  # noqa: N818
    """Ranks planned different placements or transfers; raised alike on every one of them."""


class PeerLost(CollectiveError):  # noqa: N818
    """The connection to a rank is gone, most likely because the rank died."""


class CollectiveTimeout(CollectiveError):  # noqa: N818
    """Nothing came from a rank for as long as the group waits."""
