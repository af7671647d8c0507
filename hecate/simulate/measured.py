"""What micro-benchmarks of a machine that is here say about a step on it. Pure.

Here ranks are processes on cores of their own that move bytes themselves: what a rank sends adds up
with what it receives, and a transfer takes time from the computation beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from typing import Any

import numpy as np

from collectives.placement import Placement
from collectives.topology import Topology
from hecate.planner.costs import StepCosts
from hecate.planner.load import Counts
from hecate.simulate.costs import Costs
from hecate.simulate.timeline import Work


@dataclass(frozen=True)
class Line:
    """``fixed_s``, and ``each_s`` for every piece of work."""

    fixed_s: float
    each_s: float

    @classmethod
    def through(cls, fewer: tuple[float, float], more: tuple[float, float]) -> Line:
        """By two measurements, (pieces, seconds) each; noise makes neither part negative."""
        (few, few_s), (many, many_s) = fewer, more
        each_s = max(0.0, (many_s - few_s) / (many - few))
        return cls(max(0.0, few_s - few * each_s), each_s)

    def seconds(self, pieces: float) -> float:
        return self.fixed_s + pieces * self.each_s


@dataclass(frozen=True)
class Rate:
    """A rank's transfer: ``fixed_s``, ``busier_s`` for each byte of the direction with more bytes.

    ``other_s``: for each byte of the other direction; 0 where both go at once, ``busier_s`` where
    one core does both.
    """

    fixed_s: float
    busier_s: float
    other_s: float

    @classmethod
    def through(cls, num_bytes: int, *, launch_s: float, one_way_s: float, both_s: float) -> Rate:
        """By three measurements: of next to nothing, of ``num_bytes`` one way, and both ways."""
        busier_s = max(0.0, one_way_s - launch_s) / num_bytes
        return cls(launch_s, busier_s, max(0.0, both_s - one_way_s) / num_bytes)

    def work(self, moving_WW: Counts, piece_bytes: int, *, launches: int = 1) -> Work:
        """``moving_WW[source, target]`` pieces at once; the diagonal stays where it is."""
        away_WW = moving_WW * (1 - np.eye(len(moving_WW), dtype=np.int64))
        out_W, in_W = away_WW.sum(1), away_WW.sum(0)
        busier_W, other_W = np.maximum(out_W, in_W), np.minimum(out_W, in_W)
        taken_W = piece_bytes * (busier_W * self.busier_s + other_W * self.other_s)
        return Work(launches * self.fixed_s, float(taken_W.max()))


@dataclass(frozen=True)
class HostLinks:
    """``Links`` of ranks that move bytes themselves, by what each kind of transfer was measured."""

    tokens: Rate
    gathers: Rate
    reductions: Rate

    def exchange(self, rows_WW: Counts, row_bytes: int, *, launches: int = 1) -> Work:
        if not (rows_WW.sum() - np.trace(rows_WW)):
            return Work(0.0)  # the runtime leaves it out
        return self.tokens.work(rows_WW, row_bytes, launches=launches)

    def copies(self, owners: Placement, placement: Placement, chunk_bytes: int) -> Work | None:
        return self._moved(self.gathers, owners, placement, chunk_bytes)

    def reduction(self, owners: Placement, placement: Placement, chunk_bytes: int) -> Work | None:
        return self._moved(self.reductions, owners, placement, chunk_bytes)

    @staticmethod
    def _moved(
        rate: Rate, owners: Placement, placement: Placement, chunk_bytes: int
    ) -> Work | None:
        moved_WW = np.zeros((owners.world_size, owners.world_size), dtype=np.int64)
        for own, holders in zip(owners.holders, placement.holders, strict=True):
            for rank in holders:
                moved_WW[own[0], rank] += rank != own[0]
        return rate.work(moved_WW, chunk_bytes) if moved_WW.any() else None


@dataclass(frozen=True)
class Sizes:
    """Of one model: what the measurements are multiplied with."""

    layers: int
    experts: int
    hidden_size: int
    expert_parameters: int
    dense_parameters: int
    ranks: int


@dataclass(frozen=True)
class Measurements:
    """Seconds until the slowest rank is done, all ranks at work at once.

    ``layer_*``: one decoder layer that passes its experts by, the exchange of its dense weights and
    gradients included, which nothing hides here. ``ends_s``: embeddings, head, loss and what else
    a step has once. ``dense_optimizer_s``: of one dense parameter, ``expert_optimizer_s`` of one of
    an expert: norm, clipping, update. ``dispatch_*``: a rank's own slots sorted, laid out and
    added up again. ``arrange_s``: one row that is computed, laid out by expert and back.
    ``expert_*``: experts by rows, ``Line.fixed_s`` for each expert that has any. ``counts_s``: the
    exchange of counts. ``steal``: the part of its time that a gather takes from what is computed
    beside it.
    ``reckoned``, ``topology``: what the runtime's own planner reckons with.
    """

    layer_forward_s: float
    layer_backward_s: float
    ends_s: float
    dense_optimizer_s: float
    expert_optimizer_s: float
    dispatch_forward_s: float
    dispatch_backward_s: float
    arrange_s: float
    expert_forward: Line
    expert_backward: Line
    counts_s: float
    tokens: Rate
    gathers: Rate
    reductions: Rate
    steal: float
    reckoned: StepCosts
    topology: Topology

    @property
    def links(self) -> HostLinks:
        return HostLinks(self.tokens, self.gathers, self.reductions)

    def costs(self, sizes: Sizes, *, value_bytes: int = 4) -> Costs:
        """Of a step of a model of ``sizes``; ``value_bytes``: of a weight, a gradient, a value."""
        expert_bytes = sizes.expert_parameters * value_bytes
        return Costs(
            layer_forward_s=self.layer_forward_s,
            layer_backward_s=self.layer_backward_s,
            slot_forward_s=self.expert_forward.each_s + self.arrange_s,
            slot_backward_s=self.expert_backward.each_s + self.arrange_s,
            expert_forward_s=self.expert_forward.fixed_s,
            expert_backward_s=self.expert_backward.fixed_s,
            expert_least_s=0.0,
            ends_s=self.ends_s,
            optimizer_s=sizes.dense_parameters / sizes.ranks * self.dense_optimizer_s,
            expert_optimizer_s=sizes.expert_parameters * self.expert_optimizer_s,
            host_s=(self.dispatch_forward_s + self.dispatch_backward_s) / 2,
            row_bytes=sizes.hidden_size * value_bytes,
            gather_bytes=expert_bytes,
            reduce_bytes=expert_bytes,
        )


def mean_of(measured: Sequence[Measurements]) -> Measurements:
    """Between measurements at several times; what the planner reckons with is the first one's."""
    means: dict[str, Any] = {}
    for each in fields(Measurements):
        values = [getattr(one, each.name) for one in measured]
        if isinstance(values[0], float):
            means[each.name] = float(np.mean(values))
        elif isinstance(values[0], Line | Rate):
            means[each.name] = type(values[0])(*np.mean([astuple(v) for v in values], 0).tolist())
        else:
            means[each.name] = values[0]
    return Measurements(**means)
