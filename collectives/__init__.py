"""Sparse collectives over torch.distributed, usable without the rest of Hecate.

| file | decides or executes | in -> out |
|---|---|---|
| placement.py | decides | chunks, ranks -> which rank holds which chunk |
| topology.py | decides | each rank's node, two classes of link -> who shares what |
| schedule.py | decides | placements before and after, topology -> transfers, in rounds |
| cost.py | decides | schedule, topology -> bytes of each link, predicted seconds |
| sparse.py | executes | rows, changes, schedule -> copies at new holders, or sums at owners |
| handle.py | executes | a launched collective -> its end, or an error that names it |
| errors.py | says | what can go wrong between ranks |
| token_exchange.py | executes | rows grouped by destination -> rows grouped by source |
"""

from collectives.cost import (
    Traffic,
    TransportCost,
    choose,
    lambda_share,
    predicted_s,
    traffic,
    transport_s,
)
from collectives.errors import CollectiveError, CollectiveTimeout, PeerLost, PlanDisagreement
from collectives.handle import Handle
from collectives.placement import Placement
from collectives.schedule import (
    Change,
    Schedule,
    Transfer,
    gather_schedule,
    nearly_everywhere,
    reduce_schedule,
)
from collectives.sparse import sparse_all_gather, sparse_reduce_scatter
from collectives.token_exchange import TokenExchange, exchange_rows, gather_counts
from collectives.topology import Link, Topology
from collectives.transports import TRANSPORTS

__all__ = [
    "TRANSPORTS",
    "Change",
    "CollectiveError",
    "CollectiveTimeout",
    "Handle",
    "Link",
    "PeerLost",
    "Placement",
    "PlanDisagreement",
    "Schedule",
    "TokenExchange",
    "Topology",
    "Traffic",
    "Transfer",
    "TransportCost",
    "choose",
    "exchange_rows",
    "gather_counts",
    "gather_schedule",
    "lambda_share",
    "nearly_everywhere",
    "predicted_s",
    "reduce_schedule",
    "sparse_all_gather",
    "sparse_reduce_scatter",
    "traffic",
    "transport_s",
]
