"""Experts as whole chunks with one owner each, and the runtime that trains them.

| file | decides or executes | in -> out |
|---|---|---|
| config.py | decides | the user's settings of the policy |
| apply.py | executes | model, ranks, policy -> owned experts behind every experts module |
| parallelism.py | decides | a model -> an error where it is split in other ways than ours |
| blocks.py | decides | a model -> the blocks that its layers of experts lie in |
| choice.py | decides | a policy's name, costs measured here -> the policy |
| sharded.py | executes | the calls of a training loop -> steps over copies and owners |
| lifecycle.py | decides | the calls of a training loop -> whether this one may come now |
| norm.py | executes | gradients, sharded, owned or replicated -> their global norm |
| dispatch.py | decides | quotas, who holds what -> the token exchange of one layer |
| routed.py | executes | hidden states, routing -> expert outputs, over all ranks |
| experts/ | executes | rows sorted by expert -> grouped GEMMs, gradients in place |
| shards.py | executes | what one rank owns of one layer |
| frozen.py | executes | frozen experts -> this rank's own, and copies that it keeps |
| keeping.py | decides | placements -> which ranks keep a copy of which frozen expert |
| frozen_copies.py | executes | what ranks lack of frozen experts -> brought there, once |
| replicas.py | executes | room for copies of what others own |
| layer_plan.py | decides | who owns, who holds a layer -> its transfers there and home |
| channels.py | executes | a transport's name or auto -> the channels of the sparse collectives |
| layer_clock.py | executes | marks of the host or a stream -> seconds of each layer |
| observed.py | decides | placements, slots computed -> a step's metrics |
| plan_ahead.py | executes | loads as soon as they are whole -> the coming step's plan |
| room.py | decides | copies of a step, memory -> which fit, and whether layers take turns |
| spare_memory.py | executes | this rank's memory -> what copies may take |
| between.py | executes | forward passes -> seconds that a layer's gather runs beside |
| layer_replicas.py | decides | a layer -> its copies in this step, and how far they have come |
| materialize.py | executes | a step's placements -> copies gathered, their gradients sent home |
| reshard.py | executes | old owners, new owners -> whole rows moved between steps |
| measure.py | executes | an experts module -> seconds of a slot, of a copy, and their overlap |
| remembered.py | executes | a measurement -> a file that the next run finds |
| unplaced.py | executes | shapes of a layer's experts, rows -> what they would allocate |
| upload.py | executes | a host's tensor -> the device's, queued |
| routing.py | executes | counts, balance losses, replay under activation checkpointing |
"""

from hecate.fssdp.apply import shard_experts
from hecate.fssdp.config import ExpertsConfig
from hecate.fssdp.observed import StepMetrics
from hecate.fssdp.routing import RouterConfig
from hecate.fssdp.sharded import ShardedExperts

__all__ = ["ExpertsConfig", "RouterConfig", "ShardedExperts", "StepMetrics", "shard_experts"]
