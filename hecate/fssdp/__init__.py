"""Experts as whole chunks with one owner each, and the runtime that trains them.

| file | decides or executes | in -> out |
|---|---|---|
| apply.py | executes | model, ranks -> owned experts behind every experts module |
| dispatch.py | decides | routing counts, placement -> the token exchange of one layer |
| routed.py | executes | hidden states, routing -> expert outputs, over all ranks |
| experts.py | executes | rows sorted by expert -> grouped GEMMs, gradients in place |
| shards.py | executes | what one rank keeps of one layer |
| routing.py | executes | counts, balance losses, replay under activation checkpointing |
"""

from hecate.fssdp.apply import ExpertsConfig, ShardedExperts, release_experts, shard_experts
from hecate.fssdp.routing import RouterConfig

__all__ = ["ExpertsConfig", "RouterConfig", "ShardedExperts", "release_experts", "shard_experts"]
