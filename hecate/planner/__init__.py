"""The planner: what experts are copied where, who owns them, whose tokens who computes. Pure.

| file | decides or executes | in -> out |
|---|---|---|
| load.py | decides | counts of the last steps -> the coming step's loads |
| plan.py | decides | owners, copies -> who holds what in a step, as one value |
| costs.py | decides | loads, owners, copies -> predicted seconds |
| materialization.py | decides | loads, owners, budgets -> copies, by load or by predicted time |
| spreading.py | decides | how many copies of each expert -> on which ranks |
| worthwhile.py | decides | one layer's loads -> copies one by one while they pay |
| nearer.py | decides | one layer's copies -> hot experts on all ranks too, where rows take longer |
| travel.py | decides | one layer's copies -> what carries them, and how long it shows |
| owners.py | decides | loads, owners -> new owners |
| sharding.py | decides | loads, owners -> owners of all layers, by Algorithm 2 or by swaps |
| calibration.py | decides | counts after the gate, who holds what -> further copies |
| quotas.py | decides | counts, who holds what -> slots for each computing rank |
| mispredictions.py | decides | a plan, the loads that came -> copies in vain, copies that lacked |
| replay.py | decides | recorded counts, a policy -> what it would have done |
| policies/ | decides | loads, owners -> all of the above, one strategy a file |
"""

from hecate.planner.costs import (
    StepCosts,
    exposed_s,
    predicted_layer_s,
    predicted_step_s,
    rank_loads,
)
from hecate.planner.load import Counts, Loads, LoadWindow
from hecate.planner.materialization import materialize_by_load, materialize_by_time
from hecate.planner.plan import Plan, Replicas, replicas_to_placements

__all__ = [
    "Counts",
    "LoadWindow",
    "Loads",
    "Plan",
    "Replicas",
    "StepCosts",
    "exposed_s",
    "materialize_by_load",
    "materialize_by_time",
    "predicted_layer_s",
    "predicted_step_s",
    "rank_loads",
    "replicas_to_placements",
]
