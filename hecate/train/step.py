"""One optimizer step over all ranks: forward, backward, clip, update, count.

The loss is the mean over the labels of all ranks and micro-batches of the step, so neither the
world size nor the way a batch is cut changes it. Gradients are sums over ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import nn

from hecate.data import MicroBatch
from hecate.errors import HecateError
from hecate.fssdp import ShardedExperts, StepMetrics
from hecate.fssdp.norm import clip_factor, clip_gradients
from hecate.mesh import ParallelContext, naming, sum_over
from hecate.models.loss import IGNORED
from hecate.planner.replay import Routed
from hecate.train.dense import DenseBackend
from hecate.train.optim import ScheduleConfig, learning_rate_factor, set_learning_rate
from hecate.train.spikes import SpikeGuard, Verdict

_TAKEN = Verdict()


@dataclass(frozen=True)
class StepResult:
    """What one step did, equal on all ranks.

    ``loss``: mean cross-entropy in nats per label. ``auxiliary_loss``: the weighted balance and z
    losses, averaged over micro-batches. ``grad_norm``: before clipping. ``counts_YE``: slots
    routed to each expert, ``[Y, E]`` int64, CPU. ``experts``: where these were computed, and what
    that moved.
    ``routed``: ``[micro-batch][layer]``, slots of each source rank and expert, ``[W, E]``.
    ``stop``: some rank was asked to end the run.
    ``verdict``: whether it was taken; if not, no weight, moment or router bias changed.
    """

    step: int
    loss: float
    auxiliary_loss: float
    grad_norm: float
    learning_rate: float
    tokens: int
    labels: int
    counts_YE: torch.Tensor
    experts: StepMetrics
    routed: Routed
    stop: bool
    verdict: Verdict = _TAKEN


def _go_on() -> bool:
    return False


class TrainingStep:
    """Everything that an optimizer step touches, on this rank."""

    def __init__(
        self,
        dense: DenseBackend,
        experts: ShardedExperts,
        optimizer: torch.optim.Optimizer,
        ctx: ParallelContext,
        *,
        schedule: ScheduleConfig,
        base_learning_rate: float,
        steps: int,
        clip_norm: float,
        guard: SpikeGuard,
        phase: Callable[[str], AbstractContextManager[object]],
    ) -> None:
        self.dense, self.experts, self.optimizer, self.ctx = dense, experts, optimizer, ctx
        self._schedule = schedule
        self._base_learning_rate, self._steps, self._clip_norm = (
            base_learning_rate,
            steps,
            clip_norm,
        )
        self._phase = phase
        self.guard = guard
        self.updates = 0
        """Steps that the optimizer's moments have seen."""

    def run(
        self,
        step: int,
        micro_batches: Sequence[MicroBatch],
        *,
        stop: Callable[[], bool] = _go_on,
    ) -> StepResult:
        """Step number ``step`` (from 0) on this rank's part of its micro-batches.

        ``stop``: whether this rank was asked to end the run; all ranks hear of it.

        Raises ``HecateError`` when the guard ends the run, before any weight changes.
        """
        ctx, log = self.ctx, self.experts.log
        sizes = torch.tensor(
            [
                sum(int((batch.labels_BS != IGNORED).sum()) for batch in micro_batches),
                sum(batch.input_ids_BS.numel() for batch in micro_batches),
            ],
            dtype=torch.int64,
        )
        with naming("the count of the step's tokens", ctx.rank):
            labels, tokens = sum_over(ctx.groups.control, sizes).tolist()
        self.experts.begin_step(step, len(micro_batches))
        sums = torch.zeros(2, dtype=torch.float64)
        for number, batch in enumerate(micro_batches):
            last = number == len(micro_batches) - 1
            with self.dense.micro_batch(last=last):
                sums += self._micro_batch(batch, len(micro_batches), labels)
        self.experts.finish_backward()
        with self._phase("optimizer"), naming("the sum of losses and gradient norms", ctx.rank):
            parameters = [p for g in self.optimizer.param_groups for p in g["params"]]
            square_sum = self.experts.grad_square_sum(parameters) + self.dense.square_sum()
            asked = sums.new_tensor([float(stop())])
            totals = sum_over(ctx.groups.control, torch.cat([sums, square_sum[None], asked]))
            sum_loss, auxiliary_loss, square_sum_all, askers = totals.tolist()
            norm = square_sum_all**0.5
            verdict = self._judge(step, sum_loss / max(1, labels), norm)
            rate = self._base_learning_rate * learning_rate_factor(
                self._schedule, step, self._steps
            )
            if verdict.take:
                self._update(parameters, norm, rate)
            else:
                self.optimizer.zero_grad()
                self.dense.discard()
            self.experts.end_step(self.optimizer, taken=verdict.take)
        assert self.experts.metrics is not None
        return StepResult(
            step=step,
            loss=sum_loss / max(1, labels),
            auxiliary_loss=auxiliary_loss,
            grad_norm=norm,
            learning_rate=rate,
            tokens=tokens,
            labels=labels,
            counts_YE=log.counts_YE.cpu(),
            experts=self.experts.metrics,
            routed=log.routed,
            stop=askers > 0,
            verdict=verdict,
        )

    def _micro_batch(self, batch: MicroBatch, micro_batches: int, labels: int) -> torch.Tensor:
        """Forward and backward; this rank's summed cross-entropy and auxiliary loss, fp64, CPU."""
        ctx = self.ctx
        with self._phase("forward"), naming("a collective of the forward pass", ctx.rank):
            cross_entropy = self.dense.forward(
                batch.input_ids_BS.to(ctx.device),
                batch.labels_BS.to(ctx.device),
                batch.position_ids_BS.to(ctx.device),
                batch.document_lengths,
            )
            auxiliary = self.experts.auxiliary_loss() / micro_batches
            loss = cross_entropy / max(1, labels) + auxiliary
        with self._phase("backward"), naming("a collective of the backward pass", ctx.rank):
            self.dense.backward(loss)
        return torch.stack([cross_entropy.detach(), auxiliary.detach()]).cpu()

    def _update(self, parameters: list[nn.Parameter], norm: float, rate: float) -> None:
        """Clip by the norm of all gradients, and step what the optimizer and the backend hold."""
        factor = clip_factor(norm, self._clip_norm) if self._clip_norm else 1.0
        clip_gradients(parameters, norm, self._clip_norm or float("inf"))
        set_learning_rate(self.optimizer, rate)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.dense.update(factor=factor, learning_rate=rate)
        self.updates += 1

    def _judge(self, step: int, loss: float, norm: float) -> Verdict:
        verdict = self.guard.judge(loss=loss, norm=norm)
        if not verdict.stop:
            return verdict
        if math.isfinite(loss) and math.isfinite(norm):
            raise HecateError(
                f"step {step}: spikes go on after every rewind; no weight was changed",
                got=verdict.reason,
                expected="a run that gets past them",
                fix="lower optimizer.learning_rate, or raise guard.deviations or guard.rewinds",
            )
        raise HecateError(
            f"step {step}: the loss or the gradient is not finite; no weight was changed",
            got=f"mean loss {loss}, gradient norm {norm}",
            expected="finite numbers",
            fix="lower optimizer.learning_rate, lengthen schedule.warmup_steps, set guard.action "
            "to skip, or resume from the newest checkpoint with --resume auto",
        )
