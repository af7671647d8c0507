"""Sparse collectives over torch.distributed, usable without the rest of Hecate.

| file | decides or executes | in -> out |
|---|---|---|
| placement.py | decides | chunks, ranks -> which rank holds which chunk |
| token_exchange.py | executes | rows grouped by destination -> rows grouped by source |
"""

from collectives.placement import Placement
from collectives.token_exchange import TokenExchange, exchange_rows, gather_counts

__all__ = ["Placement", "TokenExchange", "exchange_rows", "gather_counts"]
