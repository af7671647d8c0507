"""Transports: ways to carry a schedule out.

| file | decides or executes | in -> out |
|---|---|---|
| protocol.py | says | what a transport promises, and what it is given |
| p2p.py | executes | one message for each transfer, from row to row |
| hierarchical.py | executes | the same for schedules of two levels |
| staging.py | executes | rows that arrived -> their sum in the order of ranks |
| local.py | executes | schedule, rows of all ranks in one process -> copies, or sums at owners |
"""

from collectives.transports.hierarchical import HierarchicalTransport
from collectives.transports.p2p import P2PTransport
from collectives.transports.protocol import Launch, Rows, Steps, Transport

TRANSPORTS: dict[str, type[Transport]] = {
    "hierarchical": HierarchicalTransport,
    "p2p": P2PTransport,
}

__all__ = ["TRANSPORTS", "Launch", "Rows", "Steps", "Transport"]
