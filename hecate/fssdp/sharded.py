"""The experts of a model in somebody's training loop: what to call, and when.

with experts.step():                  # what to copy this step, and the first gathers
    model(...).loss.backward()
experts.clip_grad_norm(model.parameters(), 1.0)
optimizer.step()
optimizer.zero_grad()
experts.end_step(optimizer)           # owners may change; the next step sees the new weights
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from collectives.placement import Placement
from hecate.errors import UsageError
from hecate.fssdp.between import seconds_between
from hecate.fssdp.layer_clock import Spent
from hecate.fssdp.lifecycle import StepLifecycle
from hecate.fssdp.materialize import Materializer
from hecate.fssdp.norm import clip_gradients, grad_square_sum
from hecate.fssdp.observed import StepMetrics
from hecate.fssdp.plan_ahead import PlanAhead
from hecate.fssdp.remembered import machine_digest, remembered
from hecate.fssdp.reshard import OwnedTables, move_owners, moves_between, rows_in_state
from hecate.fssdp.room import Rematerialize, Room
from hecate.fssdp.routing import RouterConfig, RoutingLog
from hecate.fssdp.shards import ExpertShard
from hecate.fssdp.spare_memory import spare_bytes
from hecate.mesh import ParallelContext, naming, sum_over
from hecate.models.families import MoELayer
from hecate.models.routers import Router
from hecate.planner.load import LoadWindow
from hecate.planner.policies.protocol import Policy, Reckoning

_LOG = logging.getLogger(__name__)


@dataclass
class ShardedExperts:
    """The experts of a model as this rank holds them, one entry a layer.

    ``owners`` keep the experts between steps; what a step materializes beside them is the
    policy's to say, from the loads of the steps before. Gradients are the sum over ranks, or with
    ``average_gradients`` their mean, as FSDP2 and DDP give for the dense part by default. A forward
    pass outside a step computes on the owners alone, and has no backward pass. ``metrics``: what
    the last step did.
    """

    ctx: ParallelContext
    layers: tuple[MoELayer, ...]
    modules: tuple[nn.Module, ...]
    blocks: tuple[nn.Module, ...]
    owners: tuple[Placement, ...]
    shards: tuple[ExpertShard, ...]
    routers: tuple[Router, ...]
    router: RouterConfig
    average_gradients: bool
    log: RoutingLog
    policy: Policy
    loads: LoadWindow
    plans: PlanAhead
    materializer: Materializer
    lifecycle: StepLifecycle
    rematerialize: Rematerialize
    copies_bytes: int
    costs_folder: Path
    step_number: int = -1
    metrics: StepMetrics | None = None
    _planned: tuple[Placement, ...] = ()
    _steps_begun: int = 0
    _room: Room | None = None
    _auxiliary_asked: bool = False
    _said_short: bool = False
    _registered: bool = True

    def parameters(self) -> list[nn.Parameter]:
        """The master weights of every layer, ``[e, C]``, also where this rank owns none of it."""
        return [shard.parameter for shard in self.shards]

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """``parameters`` by the names that they have in the model."""
        return {f"{shard.layer.name}.chunks": shard.parameter for shard in self.shards}

    def unregister(self) -> None:
        """Take the experts out of ``model.parameters()`` for good; ``parameters`` still has them.

        For a runtime that broadcasts, partitions or reduces whatever it finds there.
        """
        for module in self.modules:
            module._parameters.pop("chunks", None)
        self._registered = False

    @contextmanager
    def step(self, number: int | None = None, *, micro_batches: int = 1) -> Iterator[None]:
        """Around the forward and backward passes of a step, all alike on ranks.

        ``number``: which step it is, from 0; without it, the one after the last.
        ``micro_batches``: how often it goes forward and backward. Afterwards the gradients of
        the experts are whole.
        """
        self.begin_step(self.step_number + 1 if number is None else number, micro_batches)
        yield
        self.finish_backward()

    def begin_step(self, step: int, num_micro_batches: int) -> None:
        """Forget the gradients, plan the step and start to materialize it."""
        self.lifecycle.begin(num_micro_batches)
        self.step_number, self._auxiliary_asked = step, False
        self.log.begin_step()
        for module, shard in zip(self.modules, self.shards, strict=True):
            if self._registered:
                _require_whole(module, shard)
            shard.begin_step()
        accumulates = num_micro_batches > 1
        room = self._known_room(accumulates=accumulates)
        planned = self.plans.plan(step, self.loads, self.owners)
        fitted = room.fit(planned, self.owners, self.loads.predict(), accumulates=accumulates)
        if fitted.dropped and not self._said_short:
            self._said_short = True
            self._say_short(fitted.dropped, step)
        self._planned = fitted.placements
        self.materializer.begin_step(
            fitted.placements,
            num_micro_batches,
            rematerialize=fitted.rematerialize,
            kept_bytes=room.budget_bytes,
        )

    def _known_room(self, *, accumulates: bool) -> Room:
        """What copies may take: read twice, since the first step makes the optimizer's state."""
        if self._room is None or self._steps_begun == 1:
            self._room = Room(
                self.copies_bytes or spare_bytes(self.ctx),
                tuple(s.gather_bytes + s.frozen_bytes for s in self.shards),
                tuple(s.reduce_bytes for s in self.shards),
                self.rematerialize,
            )
            most = self._room.slots_per_rank(accumulates=accumulates)
            gathers = 2 if self.rematerialize is True else 1
            self.policy.adjust_costs(
                lambda costs: replace(
                    costs, slots_per_rank=min(most, costs.slots_per_rank), gathers=gathers
                )
            )
        self._steps_begun += 1
        return self._room

    def _say_short(self, dropped: int, step: int) -> None:
        if self.ctx.rank == 0:
            assert self._room is not None
            _LOG.warning(
                "step %d: no memory for %d copies of experts, which are left out from now on where "
                "they do not fit; %.0f MiB of a rank are for copies (experts.copies_mib)",
                step,
                dropped,
                self._room.budget_bytes / 2**20,
            )

    def learn_hidden(self, forward: Callable[[], object], *, subject: object) -> None:
        """Measure what a layer's transfers run beside, by forward passes of the usual size.

        ``forward`` runs the model once, outside a step, under ``torch.no_grad()``; ``subject`` says
        which model and batch that was, since the seconds are remembered for the next run.
        Collective over all ranks. Without it, or ``experts.costs.hidden_s``, nothing is taken to
        hide.
        """
        if self.ctx.world_size == 1 or not isinstance(self.policy, Reckoning):
            return
        if self.policy.costs.hidden_gather_s:
            return
        digest = machine_digest(self.ctx, "block to experts", subject)
        (between_s,) = remembered(
            self.costs_folder / f"{digest}.json",
            ("between_s",),
            lambda: [seconds_between(self.modules, forward, self.ctx.device, blocks=self.blocks)],
            dist.ReduceOp.MIN,
            self.ctx,
        )
        # attention takes about twice as long backward, where the second gather goes as well
        back_s = between_s if self.rematerialize is True else 2 * between_s
        self.policy.adjust_costs(
            lambda costs: replace(costs, hidden_gather_s=between_s, hidden_reduce_s=back_s)
        )

    def auxiliary_loss(self) -> torch.Tensor:
        """The balance and z losses of the micro-batch just run, to be added to its loss.

        A mean over the tokens of all ranks, as this rank's gradient needs it: see
        ``RoutingLog.auxiliary_loss``.
        """
        self._auxiliary_asked = True
        loss = self.log.auxiliary_loss(self.router, global_tokens=max(1, self.log.global_tokens))
        return loss * self.ctx.world_size if self.average_gradients else loss

    def finish_backward(self) -> None:
        """Wait until the owners have the whole gradients; remember the loads of the step."""
        self.lifecycle.finish()
        if (self.router.balance_loss or self.router.z_loss) and not self._auxiliary_asked:
            raise UsageError(
                "router.balance_loss or router.z_loss is set, but no loss had them in it",
                fix="add experts.auxiliary_loss() to the loss of each micro-batch, or set both "
                "to 0",
            )
        self.log.begin_micro_batch()
        held = tuple(layer.plan.placement for layer in self.materializer.layers)
        self.materializer.finish_step()
        self.metrics = self._observed(held)
        if self.average_gradients and self.ctx.world_size > 1:
            for shard in self.shards:
                if shard.parameter.grad is not None:
                    shard.parameter.grad.div_(self.ctx.world_size)
        self.loads.push(self.log.counts_YE.cpu().numpy())
        self.plans.start(self.step_number + 1, self.loads, self.owners)

    def _observed(self, held: tuple[Placement, ...]) -> StepMetrics:
        shapes = [(own.num_chunks, own.world_size) for own in self.owners]
        nothing = [np.zeros(shape, dtype=np.int64) for shape in shapes]
        return StepMetrics(
            step=self.step_number,
            owners=self.owners,
            planned=self._planned,
            held=held,
            computed=tuple(map(self.log.computed_EW.get, range(len(nothing)), nothing)),
            copies=self.materializer.copies,
            gathered_bytes=self.materializer.gathered_bytes,
            reduced_bytes=self.materializer.reduced_bytes,
            frozen_bytes=self.materializer.frozen_bytes,
        )

    def layer_seconds(self) -> dict[Spent, list[float]]:
        """This rank's seconds of each layer, ``[Y]``, since they were last asked for.

        Hidden gather time is what lies between a gather's launch and the first need of its copies,
        but no more than the gather should take by itself. On CUDA a step's seconds may come with
        the next call, since nothing waits for them.
        """
        return self.materializer.clock.take()

    def grad_square_sum(self, parameters: Iterable[nn.Parameter]) -> torch.Tensor:
        """This rank's part of the squared norm of all gradients; see ``norm.grad_square_sum``."""
        return grad_square_sum(parameters, self.parameters(), self.ctx.rank)

    def clip_grad_norm(self, parameters: Iterable[nn.Parameter], max_norm: float) -> float:
        """Clip the gradients of ``parameters``, dense and experts, by their norm over all ranks.

        Collective. Returns the norm before; ``float("inf")`` only measures.
        """
        parameters = list(parameters)
        with naming("the sum of gradient norms", self.ctx.rank):
            total = sum_over(self.ctx.groups.control, self.grad_square_sum(parameters))
        norm = math.sqrt(float(total))
        clip_gradients(parameters, norm, max_norm)
        return norm

    def end_step(self, *optimizers: torch.optim.Optimizer, taken: bool = True) -> None:
        """After ``optimizer.step()``: let experts change owners, and make the new weights count.

        ``optimizers`` are those that hold the experts: what they keep of an expert moves with it.
        A step that was not ``taken`` leaves the routers' biases as they are.
        """
        self._require_held(optimizers)
        self.lifecycle.end()
        owners = self.policy.new_owners(self.step_number, self.loads, self.owners)
        if owners is not self.owners:
            assert self.metrics is not None
            self.metrics = replace(self.metrics, moved=len(moves_between(self.owners, owners)))
            self.move_owners(owners, *optimizers)
        self.refresh()
        if taken:
            self._update_router_bias()

    def move_owners(self, owners: Sequence[Placement], *optimizers: torch.optim.Optimizer) -> None:
        """Make ``owners`` those of every layer; collective over all ranks, between steps."""
        kept = [rows_in_state(optimizers, shard.parameter) for shard in self.shards]
        layers = [
            OwnedTables(before, after, (*_tables(shard), *rows.values()))
            for shard, rows, before, after in zip(
                self.shards, kept, self.owners, owners, strict=True
            )
        ]
        with naming("the re-sharding of experts", self.ctx.rank):
            moved = move_owners(layers, rank=self.ctx.rank, group=self.ctx.groups.gather)
        for index, (own, tables) in enumerate(zip(layers, moved, strict=True)):
            if tables is own.tables:
                continue
            shard = self.shards[index]
            expert_ids = own.after.chunks_on(self.ctx.rank)
            shard.adopt(expert_ids, tables[0])
            if shard.frozen is not None:
                shard.frozen.adopt(expert_ids, tables[1])
            moments = tables[len(_tables(shard)) :]
            for optimizer in optimizers:
                state = optimizer.state.get(shard.parameter, {})
                state.update(zip(kept[index], moments, strict=True) if state else ())
            self.owners = (*self.owners[:index], own.after, *self.owners[index + 1 :])
            self.materializer.set_owners(index, own.after)

    def refresh(self) -> None:
        """Bring what the forward pass uses up to date with the master weights."""
        for shard in self.shards:
            shard.refresh()

    @property
    def checkpoint_contexts(
        self,
    ) -> partial[tuple[AbstractContextManager[Any], AbstractContextManager[Any]]]:
        """``context_fn`` of ``torch.utils.checkpoint``: experts and routing are replayed.

        A partial, since torch.compile traces a checkpoint with no bound method for a context_fn.
        """
        return partial(RoutingLog.checkpoint_contexts, self.log)

    def full_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every expert tensor whole, by its name in transformers: ``[E, ...]``, masters, CPU.

        Collective over all ranks, which all get them; one layer at a time is in memory.
        """
        for layer, shard in zip(self.layers, self.shards, strict=True):
            shape = (layer.num_experts, layer.layout.numel)
            table_EC = torch.zeros(shape, dtype=shard.parameter.dtype)
            table_EC[list(shard.expert_ids)] = shard.parameter.detach().cpu()
            with naming(f"the gathering of {layer.name}", self.ctx.rank):
                dist.all_reduce(table_EC, group=self.ctx.groups.control)
            for name, tensor in layer.layout.views(table_EC).items():
                yield f"{layer.name}.{name}", tensor

    def _require_held(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        held = {
            id(p) for optimizer in optimizers for g in optimizer.param_groups for p in g["params"]
        }
        for shard in self.shards:
            if id(shard.parameter) not in held:
                raise UsageError(
                    f"no optimizer given to end_step holds the experts of {shard.layer.name}",
                    got=f"{len(optimizers)} optimizers with {len(held)} parameters",
                    expected="every one of experts.parameters(), the empty ones too",
                    fix="make the optimizer after shard_experts, of model.parameters()",
                )

    def _update_router_bias(self) -> None:
        """Raise the bias of experts below the mean load, lower the others' (2408.15664)."""
        rate = self.router.bias_update_rate
        if not rate:
            return
        for router in self.routers:
            bias_E = router.bias
            assert bias_E is not None
            counts_E = self.log.counts_YE[router.layer.index, : bias_E.numel()].to(bias_E.dtype)
            bias_E += rate * torch.sign(counts_E.mean() - counts_E).view_as(bias_E)


def _tables(shard: ExpertShard) -> tuple[torch.Tensor, ...]:
    """What moves with an expert beside what optimizers keep of it, ``[e, C]`` each."""
    frozen = () if shard.frozen is None else (shard.frozen.table_eC,)
    return (shard.parameter.data, *frozen)


def _require_whole(module: nn.Module, shard: ExpertShard) -> None:
    """The experts module still has the parameter that it was given."""
    if module._parameters.get("chunks") is not shard.parameter:
        raise UsageError(
            f"the experts of {shard.layer.name} were replaced after shard_experts",
            got=f"a {type(module._parameters.get('chunks')).__name__} in their place",
            expected="the experts to be left to their owners",
            fix="call fully_shard(module, mesh=ctx.mesh, "
            "ignored_params=set(experts.parameters())) for every module",
        )
