"""The runtime behind one experts module: dispatch, compute, combine, as one autograd node.

Dropless: every slot travels to a rank that holds its expert, by the policy's quotas, and back.
One node for the whole layer means that nothing is kept twice and every gradient is written once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from collectives.token_exchange import exchange_rows, gather_counts
from hecate.errors import UsageError
from hecate.fssdp.dispatch import DispatchPlan, count_tokens, plan_dispatch
from hecate.fssdp.experts import ExpertKernel, ExpertMath, Saved
from hecate.fssdp.layer_clock import Spent
from hecate.fssdp.lifecycle import StepLifecycle
from hecate.fssdp.materialize import Materializer
from hecate.fssdp.routing import RoutingLog
from hecate.fssdp.shards import ExpertShard
from hecate.mesh import naming
from hecate.planner.policies.protocol import Policy

PhaseTimer = Callable[[str], Any]
Override = Callable[[int, torch.Tensor], torch.Tensor]


class RowsRuntime(Protocol):
    """What ``RoutedNode`` needs of the runtime behind it; see ``RoutedExperts`` for the terms."""

    def forward_rows(
        self, x_SD: torch.Tensor, weights_S: torch.Tensor, plan: DispatchPlan
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Saved]: ...

    def backward_rows(
        self,
        d_y_SD: torch.Tensor,
        x_RD: torch.Tensor,
        weights_R: torch.Tensor,
        saved: Saved,
        plan: DispatchPlan,
    ) -> tuple[torch.Tensor, torch.Tensor]: ...


class RoutedExperts:
    """Runs the experts of one layer over all ranks of ``group``.

    Called with ``x_TD``, ``top_k_index_TK`` and ``top_k_weights_TK``; returns ``[T, D]``, the
    weighted sum of each token's experts. ``override(layer, top_k_index_TK)`` may put other experts
    in the place of the router's, which no real training does; benchmarks replay loads with it.
    ``phase("experts")`` and ``phase("all_to_all")`` are context managers that time what runs
    inside.
    """

    def __init__(
        self,
        shard: ExpertShard,
        math: ExpertMath,
        kernel: ExpertKernel,
        materializer: Materializer,
        policy: Policy,
        lifecycle: StepLifecycle,
        *,
        override: Override | None,
        rank: int,
        world_size: int,
        group: dist.ProcessGroup,
        log: RoutingLog,
        phase: PhaseTimer,
    ) -> None:
        self.shard = shard
        self._math, self._kernel = math, kernel
        self._materializer, self._policy, self._override = materializer, policy, override
        self._lifecycle = lifecycle
        self._rank, self._world_size, self._group = rank, world_size, group
        self._log, self._phase = log, phase

    def __call__(
        self, x_TD: torch.Tensor, top_k_index_TK: torch.Tensor, top_k_weights_TK: torch.Tensor
    ) -> torch.Tensor:
        self._enter_forward()
        if self._override is not None:
            top_k_index_TK = self._override(self.shard.layer.index, top_k_index_TK)
        plan, dtype = self._plan(top_k_index_TK), self.shard.compute_dtype
        with torch.autocast(x_TD.device.type, enabled=False):
            result: torch.Tensor = RoutedNode.apply(  # type: ignore[no-untyped-call]
                x_TD.to(dtype), top_k_weights_TK.to(dtype), self.shard.parameter, plan, self
            )
        return result.to(x_TD.dtype)

    def _enter_forward(self) -> None:
        """Count a micro-batch at the first layer; refuse a second run that replays nothing."""
        if self._log.recomputing:
            return
        if torch._C._current_graph_task_id() != -1:  # inside a backward pass
            raise UsageError(
                f"{self.shard.layer.name} is recomputed, and would route its tokens anew",
                got="activation checkpointing without our context_fn",
                fix="pass use_reentrant=False and context_fn=experts.checkpoint_contexts to "
                "torch.utils.checkpoint, or in gradient_checkpointing_kwargs",
            )
        if not torch.is_grad_enabled():
            return
        self._lifecycle.require_step(self.shard.layer.name)
        if self.shard.layer.index == 0:
            self._require_own_gradients()
            self._materializer.begin_micro_batch(last=self._lifecycle.enter_forward())

    def _require_own_gradients(self) -> None:
        """Refuse a ``DistributedDataParallel`` around more than the model that we were given."""
        wrapper = DistributedDataParallel._get_active_ddp_module()
        if wrapper is not None and any(
            p is self.shard.parameter for p in wrapper._module_parameters
        ):
            raise UsageError(
                "DistributedDataParallel made all ranks' experts alike, and would average them",
                got=f"{self.shard.layer.name} inside a module that shard_experts did not see whole",
                fix="pass to shard_experts the very module that DistributedDataParallel wraps",
            )

    def _plan(self, top_k_index_TK: torch.Tensor) -> DispatchPlan:
        replay = self._log.replay
        if replay is not None and replay.recomputing and replay.plan is not None:
            return replay.plan
        layer = self.shard.layer
        counts_E = count_tokens(top_k_index_TK, layer.num_experts)
        everyone_WE = counts_E[None]
        if self._world_size > 1:
            with self._named("the count exchange"):
                everyone_WE = gather_counts(counts_E, self._group, self._world_size)
        self._log.record_counts(layer.index, everyone_WE.sum(0))
        counts_WE = everyone_WE.cpu().numpy()
        self._log.global_tokens = int(counts_WE.sum()) // top_k_index_TK.shape[1]
        replicas, policy = self._materializer.layers[layer.index], self._policy
        if self._materializer.active:
            self._log.record_routed(layer.index, counts_WE)
            wanted = policy.after_gate(layer.index, counts_WE, replicas.plan.placement)
            self._materializer.extend(layer.index, wanted)
        now = replicas.plan
        quotas_WEW = policy.route(counts_WE, now.placement)
        self._log.record_computed(layer.index, quotas_WEW.sum(0))
        plan = plan_dispatch(top_k_index_TK, quotas_WEW, now.held, self._rank)
        if replay is not None:
            replay.plan = plan
        return plan

    def forward_rows(
        self, x_SD: torch.Tensor, weights_S: torch.Tensor, plan: DispatchPlan
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Saved]:
        """Slots in sent order to their weighted results in the same order, and what to keep."""
        x_RD, weights_R = self._there(x_SD, plan), self._there(weights_S, plan)
        experts = self._materializer.experts(self.shard.layer.index)
        with self._experts_computing():
            y_RD, saved = self._kernel.forward(
                x_RD, weights_R, plan.rows_per_expert, experts, self._math
            )
        y_SD = self._back(y_RD, plan)
        if not self._log.recomputing:
            self._materializer.after_forward(self.shard.layer.index)
        return y_SD, x_RD, weights_R, saved

    def backward_rows(
        self,
        d_y_SD: torch.Tensor,
        x_RD: torch.Tensor,
        weights_R: torch.Tensor,
        saved: Saved,
        plan: DispatchPlan,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The gradient of the results to those of the slots and their weights, in sent order."""
        self._lifecycle.require_running(self.shard.layer.name)
        d_y_RD = self._there(d_y_SD, plan)
        experts = self._materializer.before_backward(self.shard.layer.index)
        with self._experts_computing():
            d_x_RD, d_weights_R = self._kernel.backward(
                d_y_RD, x_RD, weights_R, saved, plan.rows_per_expert, experts, self._math
            )
        d_x_SD, d_weights_S = self._back(d_x_RD, plan), self._back(d_weights_R, plan)
        self._materializer.after_backward(self.shard.layer.index)
        if self.shard.layer.index == 0:
            self._lifecycle.leave_backward()
        return d_x_SD, d_weights_S

    def _there(self, rows_SD: torch.Tensor, plan: DispatchPlan) -> torch.Tensor:
        """Sent order to expert order on the owners."""
        if plan.crosses:
            with self._named("the token exchange"):
                rows_SD = exchange_rows(rows_SD, plan.send_rows, plan.receive_rows, self._group)
        return rows_SD if plan.arrange_R is None else rows_SD.index_select(0, plan.arrange_R)

    def _back(self, rows_RD: torch.Tensor, plan: DispatchPlan) -> torch.Tensor:
        """Expert order on the owners to sent order."""
        if plan.arrange_R is not None:
            rows_RD = torch.empty_like(rows_RD).index_copy_(0, plan.arrange_R, rows_RD)
        if plan.crosses:
            with self._named("the token exchange"):
                rows_RD = exchange_rows(rows_RD, plan.receive_rows, plan.send_rows, self._group)
        return rows_RD

    @contextmanager
    def _experts_computing(self) -> Iterator[None]:
        clock, layer = self._materializer.clock, self.shard.layer.index
        with self._phase("experts"), clock.span(Spent.EXPERTS, layer):
            yield

    @contextmanager
    def _named(self, collective: str) -> Iterator[None]:
        with (
            self._phase("all_to_all"),
            naming(f"{collective} of {self.shard.layer.name}", self._rank),
        ):
            yield


class RoutedNode(torch.autograd.Function):
    """A layer's experts as autograd sees them; ``runtime`` moves and computes the rows."""

    @staticmethod
    def forward(
        ctx: Any,
        x_TD: torch.Tensor,
        weights_TK: torch.Tensor,
        anchor: torch.Tensor,
        plan: DispatchPlan,
        runtime: RowsRuntime,
    ) -> torch.Tensor:
        token_S = plan.slot_order_S // weights_TK.shape[1]
        weights_S = weights_TK.reshape(-1)[plan.slot_order_S]
        y_SD, x_RD, weights_R, saved = runtime.forward_rows(
            x_TD.index_select(0, token_S), weights_S, plan
        )
        ctx.save_for_backward(x_RD, weights_R, *saved)
        ctx.plan, ctx.runtime = plan, runtime
        return combine(y_SD, plan.row_of_slot_TK)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_out_TD: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_RD, weights_R, *saved = ctx.saved_tensors
        plan: DispatchPlan = ctx.plan
        token_S = plan.slot_order_S // plan.row_of_slot_TK.shape[1]
        d_out_SD = d_out_TD.index_select(0, token_S)
        d_x_SD, d_weights_S = ctx.runtime.backward_rows(
            d_out_SD, x_RD, weights_R, Saved(*saved), plan
        )
        d_x_TD = combine(d_x_SD, plan.row_of_slot_TK)
        return d_x_TD, d_weights_S[plan.row_of_slot_TK], None, None, None


def combine(rows_SD: torch.Tensor, row_of_slot_TK: torch.Tensor) -> torch.Tensor:
    """Sum each token's rows: ``[S, D]`` to ``[T, D]``."""
    if rows_SD.dtype in (torch.float32, torch.float64):
        return F.embedding_bag(row_of_slot_TK, rows_SD, mode="sum")
    rows_TKD = rows_SD.index_select(0, row_of_slot_TK.reshape(-1)).view(
        *row_of_slot_TK.shape, rows_SD.shape[-1]
    )
    return rows_TKD.sum(1)
