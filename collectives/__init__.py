"""Sparse collectives over torch.distributed, usable without the rest of Hecate.

| file | decides or executes | in -> out |
|---|---|---|
| placement.py | decides | chunks, ranks -> which rank holds which chunk |
| topology.py | decides | each rank's node, two classes of link -> who shares what |
| schedule.py | decides | placements before and after, topology -> transfers, in rounds |
| token_exchange.py | executes | rows grouped by destination -> rows grouped by source |
"""

from collectives.placement import Placement
from collectives.schedule import (
    Change,
    Schedule,
    Transfer,
    gather_schedule,
    nearly_everywhere,
    reduce_schedule,
)
from collectives.token_exchange import TokenExchange, exchange_rows, gather_counts
from collectives.topology import Link, Topology

__all__ = [
    "Change",
    "Link",
    "Placement",
    "Schedule",
    "TokenExchange",
    "Topology",
    "Transfer",
    "exchange_rows",
    "gather_counts",
    "gather_schedule",
    "nearly_everywhere",
    "reduce_schedule",
]
