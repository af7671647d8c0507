"""What a run's log says of its experts: mispredictions, moves, bytes, and who waited."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from hecate.fssdp import StepMetrics
from hecate.fssdp.layer_clock import Spent
from hecate.logging import Value

_LOG = logging.getLogger(__name__)

# Below that, launching kernels and moving rows takes most of the time that experts have.
SMALL = 0.1


@dataclass
class ExpertTally:
    """Adds up steps until they are logged; one number for each layer, or one for all of them."""

    idle_copies_Y: list[float] = field(default_factory=list)
    missed_experts_Y: list[float] = field(default_factory=list)
    moved: int = 0
    gathered_bytes: int = 0
    reduced_bytes: int = 0

    def add(self, step: StepMetrics) -> None:
        layers = step.mispredictions
        self.idle_copies_Y = _added(self.idle_copies_Y, [one.idle_copies for one in layers])
        self.missed_experts_Y = _added(
            self.missed_experts_Y, [one.missed_experts for one in layers]
        )
        self.moved += step.moved
        self.gathered_bytes += step.gathered_bytes
        self.reduced_bytes += step.reduced_bytes

    def figures(self) -> dict[str, Value]:
        """Over all ranks, by the names that sinks know them by."""
        return {
            "load/idle_copies": self.idle_copies_Y,
            "load/missed_experts": self.missed_experts_Y,
            "load/moved_experts": float(self.moved),
            "gather/bytes": float(self.gathered_bytes),
            "reduce/bytes": float(self.reduced_bytes),
        }


def seconds_table(seconds: Mapping[Spent, list[float]]) -> torch.Tensor:
    """One rank's seconds, ``[len(Spent), Y]`` fp64, CPU, in the order of ``Spent``."""
    return torch.tensor([seconds[spent] for spent in Spent], dtype=torch.float64)


def time_figures(seconds_WSY: torch.Tensor) -> dict[str, Value]:
    """Of every rank's ``seconds_table``, ``[W, len(Spent), Y]``: means over ranks, ``[Y]`` each.

    ``load/straggler_wait_s`` is what ranks waited on average for the one that computed longest in a
    layer: the most over ranks less the mean. Forward and backward passes of all steps are added up
    first, so that a straggler that changes in between counts less than it should.
    """
    of = {spent: seconds_WSY[:, place] for place, spent in enumerate(Spent)}
    experts_WY = of[Spent.EXPERTS]
    return {
        "load/straggler_wait_s": (experts_WY.amax(0) - experts_WY.mean(0)).tolist(),
        "gather/exposed_s": of[Spent.EXPOSED].mean(0).tolist(),
        "gather/hidden_s": of[Spent.HIDDEN].mean(0).tolist(),
    }


def experts_mfu(seconds_WSY: torch.Tensor, flops: float, *, peak_flops: float) -> float:
    """The share of all ranks' ``peak_flops`` that they reach while they compute experts.

    ``flops``: of all experts in the time that the tables of seconds are about.
    """
    seconds = seconds_WSY[:, list(Spent).index(Spent.EXPERTS)].sum(1).mean()
    return flops / (float(seconds) * peak_flops) if seconds > 0 and peak_flops > 0 else 0.0


class SmallExperts:
    """Says once that experts are too small, or get too few tokens, for this machine."""

    def __init__(self) -> None:
        self._said = False

    def look(self, reached: float, slots_per_expert: float) -> None:
        """``reached``: ``experts_mfu``; ``slots_per_expert``: tokens that an expert gets a step."""
        if self._said or not 0 < reached < SMALL:
            return
        self._said = True
        _LOG.warning(
            "experts compute at %.1f %% of the speed of a large matrix product: with %.0f tokens a "
            "step each they are small for this machine, and a dense model would train as fast; "
            "raise train.batch_sequences, or choose fewer and wider experts",
            100 * reached,
            slots_per_expert,
        )


def _added(before_Y: list[float], more_Y: list[int]) -> list[float]:
    zeros = [0.0] * len(more_Y)
    return [a + b for a, b in zip(before_Y or zeros, more_Y, strict=True)]
