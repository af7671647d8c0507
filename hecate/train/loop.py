"""The loop of a training run: data, step, log, save, evaluate, until the last step."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from hecate.checkpoint.agreement import together
from hecate.checkpoint.base import base_identity
from hecate.checkpoint.store import CheckpointStore
from hecate.data import MicroBatch, TokenizedCorpus, TrainStream
from hecate.errors import HecateError
from hecate.logging import OpenSink, Value
from hecate.mesh import ParallelContext, naming, sum_over
from hecate.train.build import Trainer
from hecate.train.config import RunConfig
from hecate.train.evaluate import evaluation
from hecate.train.expert_figures import (
    ExpertTally,
    SmallExperts,
    experts_mfu,
    seconds_table,
    time_figures,
)
from hecate.train.host_memory import FreedMemory
from hecate.train.loads import LoadsRecorder
from hecate.train.memory import memory_values
from hecate.train.metrics import (
    PhaseClock,
    attended_keys,
    bits_per_byte,
    load_statistics,
    max_over_mean,
    mfu,
    perplexity,
)
from hecate.train.noise import noise_scale
from hecate.train.profile import Recorder
from hecate.train.reshard import placement_state
from hecate.train.router_health import RouterTally
from hecate.train.spikes import Verdict
from hecate.train.state import load_state, save_state, updates_of
from hecate.train.step import StepResult

_LOG = logging.getLogger(__name__)


@dataclass
class Interval:
    """What has come together since the last line was logged."""

    started_s: float
    router: RouterTally
    steps: int = 0
    tokens: int = 0
    flops: float = 0.0
    expert_flops: float = 0.0
    losses: list[float] = field(default_factory=list)
    experts: ExpertTally = field(default_factory=ExpertTally)


@dataclass(frozen=True)
class LoopEnd:
    """After which step a loop ended, and the held-out metrics then: none if it was stopped."""

    steps: int
    held_out: dict[str, float]


class TrainingLoop:
    """One run on this rank, from ``first_step`` on.

    ``loads`` is where rank 0 keeps the router loads. ``clock`` gives seconds; ``peak_flops`` is
    what all ranks together reach in a large GEMM. ``stop`` says whether this rank was asked to end.
    ``begins`` hears of each step as it begins.
    ``recorder`` makes the profile that was asked for.
    """

    def __init__(
        self,
        config: RunConfig,
        ctx: ParallelContext,
        trainer: Trainer,
        stream: TrainStream,
        corpus: TokenizedCorpus,
        store: CheckpointStore,
        sinks: Sequence[OpenSink],
        phases: PhaseClock,
        loads: LoadsRecorder | None,
        freed: FreedMemory,
        *,
        clock: Callable[[], float],
        peak_flops: float,
        stop: Callable[[], bool],
        begins: Callable[[int], object],
        recorder: Recorder,
    ) -> None:
        self._config, self._ctx, self._trainer = config, ctx, trainer
        self._stream, self._corpus, self._store = stream, corpus, store
        self._sinks, self._phases, self._clock = sinks, phases, clock
        self._peak_flops, self._loads, self._stop = peak_flops, loads, stop
        self._small, self._freed = SmallExperts(), freed
        self._flops, self._begins, self._recorder = trainer.flops, begins, recorder

    def run(self, first_step: int) -> LoopEnd:
        """Train to the last step, or to one at which some rank was asked to stop, and save that."""
        config = self._config
        self._forget_seconds()
        interval = self._interval()
        self._recorder.begin(self._trainer.experts, first_step)
        for step in range(first_step, config.train.steps):
            self._begins(step)
            with self._recorder.step(step):
                with self._recorder.phase("data"):
                    micro_batches = self._stream.next_step()
                result = self._trainer.step.run(step, micro_batches, stop=self._stop)
            self._freed.after_step()
            self._count(interval, result, micro_batches)
            self._heed(step, result.verdict)
            if self._loads is not None:
                self._loads.record(step, result.routed)
            done = step + 1
            last = done == config.train.steps
            if done % config.logging.every == 0 or last or result.stop:
                self._log(done, self._figures(interval, result))
                interval = self._interval()
            if done % config.checkpoint.every == 0 or last or result.stop:
                self._save(done)
            if result.stop and not last:
                self._recorder.finish()
                self._store.wait()
                return LoopEnd(done, {})
            if config.train.eval_every and done % config.train.eval_every == 0 and not last:
                self._evaluate(done, config.train.eval_sequences)
                interval = self._interval()
        self._recorder.finish()
        evaluated = self._evaluate(config.train.steps, 0)
        self._store.wait()
        return LoopEnd(config.train.steps, evaluated)

    def _interval(self) -> Interval:
        layers = self._trainer.layers
        return Interval(self._clock(), RouterTally([layer.num_experts for layer in layers]))

    def _heed(self, step: int, verdict: Verdict) -> None:
        """Say that a step was left out, and go back to the newest checkpoint where that is due."""
        if verdict.take:
            return
        if self._ctx.rank == 0:
            _LOG.warning("step %d is left out: %s", step, verdict.reason)
        if not verdict.rewind:
            return
        newest = self._store.newest()
        if newest is None:
            raise HecateError(
                f"step {step}: guard.rewind_after steps were left out, and there is no checkpoint",
                got=verdict.reason,
                expected="a checkpoint to take the weights from",
                fix="lower checkpoint.every or optimizer.learning_rate, or raise guard.deviations",
            )
        with together(self._ctx.groups.control, f"reading checkpoint {newest}"):
            meta = self._store.read_meta(newest)
        load_state(self._store, newest, self._trainer, {}, updates=updates_of(meta))
        if self._ctx.rank == 0:
            _LOG.warning("step %d: weights and moments are those of %s again", step, newest.name)

    def _count(
        self, interval: Interval, result: StepResult, micro_batches: Sequence[MicroBatch]
    ) -> None:
        keys = sum(attended_keys(batch.document_lengths) for batch in micro_batches)
        own = sum(batch.input_ids_BS.numel() for batch in micro_batches)
        interval.steps += 1
        interval.tokens += result.tokens
        if result.verdict.take:
            interval.losses.append(result.loss)
        interval.experts.add(result.experts)
        slots_Y = result.counts_YE.sum(1).tolist()
        interval.expert_flops += self._flops.of_experts(slots_Y)
        interval.router.add(result.counts_YE)
        interval.flops += self._flops.of(
            tokens=result.tokens,
            assignments_Y=slots_Y,
            attended_keys=round(keys * result.tokens / max(1, own)),
        )

    def _figures(self, interval: Interval, result: StepResult) -> dict[str, Value]:
        elapsed_s = self._clock() - interval.started_s
        losses = interval.losses or [result.loss]
        loss = sum(losses) / len(losses)
        facts = self._corpus.facts
        loads = load_statistics(result.counts_YE, result.experts.owners)
        figures: dict[str, Value] = {
            "loss": loss,
            "perplexity": perplexity(loss),
            "bits_per_byte": bits_per_byte(
                loss, predicted_tokens=facts.tokens, text_bytes=facts.bytes
            ),
            "auxiliary_loss": result.auxiliary_loss,
            "learning_rate": result.learning_rate,
            "grad_norm": result.grad_norm,
            "skipped_steps": float(self._trainer.step.guard.skipped),
            "tokens_per_s": interval.tokens / elapsed_s if elapsed_s > 0 else 0.0,
            "mfu": mfu(interval.flops, elapsed_s=elapsed_s, peak_flops=self._peak_flops),
            "load/tokens_per_expert": [list(load.tokens_per_expert) for load in loads],
            "load/experts_max_over_mean": [load.experts_max_over_mean for load in loads],
            "load/ranks_max_over_mean": [load.ranks_max_over_mean for load in loads],
            "load/computed_max_over_mean": [
                max_over_mean(slots) for slots in result.experts.computed_slots.tolist()
            ],
            "load/copies": float(result.experts.copies),
            "load/dead_experts": [float(len(load.dead_experts)) for load in loads],
        }
        seconds_WSY = self._seconds_of_ranks()
        reached = experts_mfu(seconds_WSY, interval.expert_flops, peak_flops=self._peak_flops)
        if self._ctx.rank == 0:
            self._small.look(reached, float(result.counts_YE.double().mean()))
        figures |= interval.router.figures() | interval.experts.figures()
        figures |= noise_scale(
            self._trainer.optimizer,
            self._trainer.experts.parameters(),
            self._ctx,
            updates=self._trainer.step.updates,
            step_tokens=interval.tokens / interval.steps,
        )
        figures |= time_figures(seconds_WSY)
        figures["experts/mfu"] = reached
        figures |= {f"seconds/{name}": value for name, value in self._phases.take().items()}
        figures |= memory_values(self._ctx.device)
        return figures

    def _seconds_of_ranks(self) -> torch.Tensor:
        own_SY = seconds_table(self._trainer.experts.layer_seconds())
        seconds_WSY = torch.zeros(self._ctx.world_size, *own_SY.shape, dtype=own_SY.dtype)
        seconds_WSY[self._ctx.rank] = own_SY
        with naming("the seconds of all ranks", self._ctx.rank):
            return sum_over(self._ctx.groups.control, seconds_WSY)

    def _forget_seconds(self) -> None:
        """Of what was no training: an evaluation, or what is measured before the first step."""
        self._phases.take()
        self._trainer.experts.layer_seconds()

    def _evaluate(self, done: int, sequences: int) -> dict[str, float]:
        metrics = evaluation(
            self._trainer, self._corpus, self._config, self._ctx, sequences=sequences
        )
        self._forget_seconds()
        self._log(done, {f"eval/{name}": value for name, value in metrics.items()})
        return metrics

    def _log(self, done: int, values: Mapping[str, Value]) -> None:
        for sink in self._sinks:
            sink.log(done, values)

    def _save(self, done: int) -> None:
        state = save_state(self._trainer, self._ctx.rank)
        self._store.save(
            done, state, self._meta(done), asynchronous=self._config.checkpoint.asynchronous
        )

    def _meta(self, done: int) -> dict[str, Any]:
        """What a checkpoint says of itself beside its tensors."""
        base = Path(self._config.model.path).expanduser()
        return {
            "step": done,
            "base": base_identity(base) if self._config.lora.active else {},
            "updates": self._trainer.step.updates,
            "guard": self._trainer.step.guard.state(),
            "world_size": self._ctx.world_size,
            "config": self._config.model_dump(mode="json"),
            "hf_config": self._trainer.model.config.to_dict(),
            "data": self._stream.state_dict(),
            "experts": placement_state(self._trainer.experts),
            "layers": [
                {
                    "name": layer.name,
                    "num_experts": layer.num_experts,
                    "tensors": [[t.name, list(t.shape)] for t in layer.layout.tensors],
                }
                for layer in self._trainer.layers
            ],
        }
