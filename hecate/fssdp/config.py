"""How experts are spread over ranks: the user's settings."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from hecate.config import Config
from hecate.planner.policies import (
    FsdpConfig,
    FssdpConfig,
    ReplicationConfig,
    ShadowingConfig,
    SwappingConfig,
)


class CostsConfig(Config):
    """What the planner reckons with; 0 means: measure it here once, and remember it.

    With both ``slot_s`` and ``copy_s`` given nothing is measured, and what is 0 takes no time.
    ``slot_s``: seconds of one token's choice through one expert, forward and backward.
    ``copy_s``: seconds of an expert's weights to another rank and its gradient back, where nothing
    hides them. ``hidden_s``: seconds of a layer's gather that attention hides, and half of what its
    backward pass hides of the reduction. ``row_s``: seconds that a choice adds at a rank which
    sends it away or gets it, there and back, forward and backward. ``slots_per_rank``: the most
    copies that a rank keeps of a layer.
    """

    slot_s: float = Field(default=0.0, ge=0)
    copy_s: float = Field(default=0.0, ge=0)
    hidden_s: float = Field(default=0.0, ge=0)
    row_s: float = Field(default=0.0, ge=0)
    slots_per_rank: int = Field(default=0, ge=0)


class ExpertsConfig(Config):
    """Which policy places experts, and what it may keep.

    ``policy``: ``fssdp`` copies, for each step, the experts that the load calls for;
    ``expert_parallel`` leaves each expert on its owner and tokens travel to it; ``shadowing``,
    ``swapping``, ``replication`` and ``fsdp`` are what others do about uneven loads. All of them
    train the same model. ``rematerialize``: copies of one layer at a time are kept, and gathered a
    second time for the backward pass; ``auto`` does so when memory asks for it. ``transport``: what
    carries copies, ``auto`` what should be fastest by a short measurement. ``copies_mib``: memory
    for copies and their gradients on each rank, 0 for half of what is free.
    """

    policy: Literal["fssdp", "expert_parallel", "shadowing", "swapping", "replication", "fsdp"] = (
        "fssdp"
    )
    rematerialize: bool | Literal["auto"] = "auto"
    transport: Literal["auto", "p2p", "all_to_all", "broadcast", "hierarchical"] = "auto"
    copies_mib: float = Field(default=0.0, ge=0)
    fssdp: FssdpConfig = FssdpConfig()
    shadowing: ShadowingConfig = ShadowingConfig()
    swapping: SwappingConfig = SwappingConfig()
    replication: ReplicationConfig = ReplicationConfig()
    fsdp: FsdpConfig = FsdpConfig()
    costs: CostsConfig = CostsConfig()
