"""Point-to-point in two levels: over each node boundary once, then fan out inside the node.

Mirrored for the reduction: ranks of a node add up first, and one sum leaves it.
"""

from __future__ import annotations

from collectives.transports.p2p import P2PTransport


class HierarchicalTransport(P2PTransport):
    """``P2PTransport`` for schedules of two rounds, which ``gather_schedule`` makes."""

    name = "hierarchical"
    hierarchical = True
