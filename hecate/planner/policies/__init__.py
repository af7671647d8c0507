"""Policies: who owns, who copies, who computes."""

from hecate.planner.policies.expert_parallel import ExpertParallel
from hecate.planner.policies.fssdp import Fssdp, FssdpConfig
from hecate.planner.policies.protocol import Policy

__all__ = ["ExpertParallel", "Fssdp", "FssdpConfig", "Policy"]
