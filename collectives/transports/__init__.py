"""Transports: ways to carry a schedule out.

| file | decides or executes | in -> out |
|---|---|---|
| protocol.py | says | what a transport promises, and what it is given |
| p2p.py | executes | one message for each transfer, from row to row |
| hierarchical.py | executes | the same for schedules of two levels |
| all_to_all.py | executes | one uneven all-to-all of everything, packed |
| broadcast.py | executes | broadcasts of what nearly every rank needs, messages for the rest |
| summation.py | executes | rows that arrived -> their sum in the order of ranks |
| resources.py | holds | what the launches over one group share: memory, a stream, numbers |
| local.py | executes | schedule, rows of all ranks in one process -> copies, or sums at owners |
"""

from collectives.transports.all_to_all import AllToAllTransport
from collectives.transports.broadcast import BroadcastTransport
from collectives.transports.hierarchical import HierarchicalTransport
from collectives.transports.p2p import P2PTransport
from collectives.transports.protocol import Launch, Rows, Steps, Transport
from collectives.transports.resources import LaunchResources

TRANSPORTS: dict[str, type[Transport]] = {
    "all_to_all": AllToAllTransport,
    "broadcast": BroadcastTransport,
    "hierarchical": HierarchicalTransport,
    "p2p": P2PTransport,
}

__all__ = ["TRANSPORTS", "Launch", "LaunchResources", "Rows", "Steps", "Transport"]
