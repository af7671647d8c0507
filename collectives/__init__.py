"""Sparse collectives over torch.distributed, usable without the rest of Hecate.

| file | decides or executes | in -> out |
|---|---|---|
| placement.py | decides | chunks, ranks -> which rank holds which chunk |
| topology.py | decides | each rank's node, two classes of link -> who shares what |
| schedule.py | decides | placements before and after, topology -> transfers, in rounds |
| cost.py | decides | schedule, topology -> bytes of each link, predicted seconds |
| sparse.py | executes | rows, changes, schedule -> copies at new holders, or sums at owners |
| autograd.py | executes | rows -> rows and gradients, by both sparse collectives |
| agreement.py | executes | each rank's digests of its plan -> nothing, or one error on all ranks |
| calibration.py | executes | a group -> speeds of links and transports, the same on all ranks |
| handle.py | executes | a launched collective -> its end, or an error that names it |
| errors.py | says | what can go wrong between ranks |
| token_exchange.py | executes | rows grouped by destination -> rows grouped by source |
"""

from collectives.agreement import agree
from collectives.autograd import Exchanged, SparseExchange, gather_rows, reduce_rows
from collectives.calibration import Calibration, TransportChooser, calibrate, measure
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
from collectives.transports import TRANSPORTS, LaunchResources, Transport

__all__ = [
    "TRANSPORTS",
    "Calibration",
    "Change",
    "CollectiveError",
    "CollectiveTimeout",
    "Exchanged",
    "Handle",
    "LaunchResources",
    "Link",
    "PeerLost",
    "Placement",
    "PlanDisagreement",
    "Schedule",
    "SparseExchange",
    "TokenExchange",
    "Topology",
    "Traffic",
    "Transfer",
    "Transport",
    "TransportChooser",
    "TransportCost",
    "agree",
    "calibrate",
    "choose",
    "exchange_rows",
    "gather_counts",
    "gather_rows",
    "gather_schedule",
    "lambda_share",
    "measure",
    "nearly_everywhere",
    "predicted_s",
    "reduce_rows",
    "reduce_schedule",
    "sparse_all_gather",
    "sparse_reduce_scatter",
    "traffic",
    "transport_s",
]
