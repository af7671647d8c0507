"""Policies: who owns, who copies, who computes.

| file | decides or executes | in -> out |
|---|---|---|
| protocol.py | decides | what every policy says, and what it says by default |
| expert_parallel.py | decides | nothing is copied and nobody moves |
| fssdp.py | decides | loads of the steps before -> copies for one step; owners that follow slowly |
| shadowing.py | decides | counts after the gate -> hot experts on all ranks |
| swapping.py | decides | loads of the steps before -> other owners from time to time |
| replication.py | decides | loads of the steps before -> replicas that last |
| fsdp.py | decides | every expert on every rank |
| force_balanced.py | decides | choices in the routers' place, all alike: the ceiling |

All but the first are made from (config, costs, topology); ``POLICIES`` has them by name.
"""

from hecate.planner.policies.expert_parallel import ExpertParallel
from hecate.planner.policies.force_balanced import ForceBalanced, even_choices
from hecate.planner.policies.fsdp import Fsdp, FsdpConfig
from hecate.planner.policies.fssdp import Fssdp, FssdpConfig
from hecate.planner.policies.protocol import Policy
from hecate.planner.policies.replication import Replication, ReplicationConfig
from hecate.planner.policies.shadowing import Shadowing, ShadowingConfig
from hecate.planner.policies.swapping import Swapping, SwappingConfig

POLICIES: dict[str, type[Policy]] = {
    "expert_parallel": ExpertParallel,
    "force_balanced": ForceBalanced,
    "fsdp": Fsdp,
    "fssdp": Fssdp,
    "replication": Replication,
    "shadowing": Shadowing,
    "swapping": Swapping,
}

__all__ = [
    "POLICIES",
    "ExpertParallel",
    "ForceBalanced",
    "Fsdp",
    "FsdpConfig",
    "Fssdp",
    "FssdpConfig",
    "Policy",
    "Replication",
    "ReplicationConfig",
    "Shadowing",
    "ShadowingConfig",
    "Swapping",
    "SwappingConfig",
    "even_choices",
]
