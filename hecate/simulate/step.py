"""One training step as a program for the engine, layer by layer as the runtime runs it. Pure.

See Note [When replicas move] in hecate/fssdp/materialize.py for when copies travel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from hecate.simulate.costs import Costs
from hecate.simulate.timeline import Seconds, Span, Timeline, Transfer, Work

TOKENS, GATHERS, REDUCTIONS, DENSE = "tokens", "gathers", "reductions", "dense"


@dataclass(frozen=True)
class LayerWork:
    """One MoE layer in one step.

    ``slots_W``: rows that each rank computes, ``busy_W``: experts that it computes them with.
    ``exchange``: one way of the token exchange. ``gather``, ``reduce``: of the planned copies, and
    ``late``: a gather of copies that are added once the counts are known, beside which nothing but
    the token exchange runs.
    """

    slots_W: npt.NDArray[np.int64]
    busy_W: npt.NDArray[np.int64]
    exchange: Work
    gather: Work | None = None
    reduce: Work | None = None
    late: Work | None = None


@dataclass(frozen=True)
class StepPlan:
    """A whole step.

    ``counts``: the exchange of counts before each layer. ``dense``: the sum of one layer's dense
    gradients over ranks, behind the backward pass; ``dense_ends``: of embeddings and head.
    ``between``: what moves between this step and the next. ``owned_experts``: of the rank that
    updates most. ``rematerialize``: copies are gathered again for the backward pass, one layer
    ahead. ``recompute``: the forward pass of a layer runs again before its backward pass.
    """

    layers: Sequence[LayerWork]
    counts: Work
    dense: Work
    dense_ends: Work
    between: Work | None
    owned_experts: float
    rematerialize: bool = False
    recompute: bool = False


@dataclass(frozen=True)
class StepTime:
    """``charged_s`` adds up to the mean rank's time; ``step_s`` is the last rank's."""

    step_s: float
    charged_s: dict[str, float]
    spans: tuple[Span, ...]


def run_step(plan: StepPlan, costs: Costs, world_size: int, *, steal: float = 0.0) -> StepTime:
    """The time of ``plan`` on ``world_size`` ranks; see ``Timeline`` for ``steal``."""
    return _Program(plan, costs, Timeline(world_size, steal)).run()


class _Program:
    def __init__(self, plan: StepPlan, costs: Costs, timeline: Timeline) -> None:
        self._plan, self._costs, self._timeline = plan, costs, timeline
        self._gathering: dict[int, Transfer] = {}
        self._reducing: list[Transfer] = []
        self._dense: list[Transfer] = []

    def run(self) -> StepTime:
        plan, costs, timeline = self._plan, self._costs, self._timeline
        self._prefetch(0)
        last = len(plan.layers) - 1
        for index in range(len(plan.layers)):
            timeline.compute("attention", costs.layer_forward_s)
            self._experts_forward(index)
            self._prefetch(index + 1)
        timeline.compute("ends", costs.ends_s)
        self._sum_dense("ends", plan.dense_ends)
        if plan.rematerialize:  # the last layer's copies are still there
            self._gathering = {i: t for i, t in self._gathering.items() if i == last}
        for index in range(last, -1, -1):
            if plan.recompute:
                timeline.compute("recompute", costs.layer_forward_s)
                self._experts_forward(index, again=True)
            self._experts_backward(index)
            if plan.rematerialize:
                self._prefetch(index - 1)
            timeline.compute("attention", costs.layer_backward_s)
            self._sum_dense(f"layer {index}", plan.dense)
        for transfer in (*self._reducing, *self._dense):
            timeline.wait(transfer, name="reduce" if transfer in self._reducing else "dense")
        update_s = costs.optimizer_s + plan.owned_experts * costs.expert_optimizer_s
        timeline.compute("optimizer", update_s)
        if plan.between is not None:
            timeline.wait(timeline.issue("re-sharding", GATHERS, plan.between))
        return StepTime(timeline.end_s, dict(timeline.charged_s), tuple(timeline.spans))

    def _prefetch(self, index: int) -> None:
        if 0 <= index < len(self._plan.layers) and index not in self._gathering:
            work = self._plan.layers[index].gather
            if work is not None:
                self._gathering[index] = self._timeline.issue("gather", GATHERS, work)

    def _experts_forward(self, index: int, *, again: bool = False) -> None:
        """``again``: in a recomputation, which keeps the counts and the copies it had."""
        timeline, layer, costs = self._timeline, self._plan.layers[index], self._costs
        late: Transfer | None = None
        if not again:
            self._transfer("counts", self._plan.counts)
            timeline.compute("host", costs.host_s)
            late = self._gather_late(index)
        # rows, then their weights
        self._transfer("all_to_all", _launched(layer.exchange, 2))
        if index in self._gathering:
            timeline.wait(self._gathering[index])
        if late is not None:
            timeline.wait(late)
        timeline.compute("experts", self._experts_s(layer, costs, forward=True))
        self._transfer("all_to_all", layer.exchange)

    def _gather_late(self, index: int) -> Transfer | None:
        """Start to copy what the counts called for, once the planned copies are there."""
        work = self._plan.layers[index].late
        if work is None:
            return None
        if index in self._gathering:
            self._timeline.wait(self._gathering[index])
        return self._timeline.issue("late gather", GATHERS, work)

    def _experts_backward(self, index: int) -> None:
        timeline, layer, costs = self._timeline, self._plan.layers[index], self._costs
        timeline.compute("host", costs.host_s)
        self._transfer("all_to_all", layer.exchange)
        if self._plan.rematerialize and index in self._gathering:
            timeline.wait(self._gathering[index])
        if layer.reduce is not None:
            # the gradients' buffer is shared with the layer before
            for transfer in self._reducing:
                timeline.wait(transfer)
            self._reducing.clear()
        timeline.compute("experts", self._experts_s(layer, costs, forward=False))
        self._transfer("all_to_all", _launched(layer.exchange, 2))
        if layer.reduce is not None:
            self._reducing.append(timeline.issue("reduce", REDUCTIONS, layer.reduce))

    def _transfer(self, name: str, work: Work) -> None:
        if work.alone_s:
            self._timeline.wait(self._timeline.issue(name, TOKENS, work))

    def _sum_dense(self, name: str, work: Work) -> None:
        if work.alone_s:
            self._dense.append(self._timeline.issue(f"dense {name}", DENSE, work))

    @staticmethod
    def _experts_s(layer: LayerWork, costs: Costs, *, forward: bool) -> Seconds:
        slot_s = costs.slot_forward_s if forward else costs.slot_backward_s
        expert_s = costs.expert_forward_s if forward else costs.expert_backward_s
        passes = 1 if forward else 2
        least_W = layer.busy_W * costs.expert_least_s * passes
        work_W: Seconds = np.maximum(layer.slots_W * slot_s, least_W) + layer.busy_W * expert_s
        return work_W


def _launched(work: Work, launches: int) -> Work:
    return replace(work, launch_s=work.launch_s * launches)
