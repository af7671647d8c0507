"""Micro-benchmarks of what a training step consists of, each on its own, all ranks at once.

None of them is a step with experts: what such steps take is for the simulator to say.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from collectives.placement import Placement
from collectives.schedule import Change, gather_schedule, reduce_schedule
from collectives.sparse import Handle, Rows, sparse_all_gather, sparse_reduce_scatter
from collectives.token_exchange import exchange_rows, gather_counts
from collectives.topology import Topology
from hecate.bench.dense_layers import slowest_s, time_dense
from hecate.bench.peers import Job
from hecate.bench.peers.hecate_trainer import run_config
from hecate.folders import cache_folder
from hecate.fssdp.channels import AUTO, open_channels
from hecate.fssdp.config import CostsConfig
from hecate.fssdp.dispatch import count_tokens, plan_dispatch
from hecate.fssdp.experts import ExpertMath, kernel_for
from hecate.fssdp.layer_plan import Channel
from hecate.fssdp.measure import UNBOUNDED, measured_costs
from hecate.fssdp.norm import clip_gradients, grad_square_sum
from hecate.fssdp.replicas import ReplicaSlots
from hecate.fssdp.routed import combine
from hecate.mesh import ParallelContext
from hecate.models.build import hf_config, meta_model
from hecate.models.families import find_moe_layers
from hecate.planner.policies import ExpertParallel, even_choices
from hecate.simulate.measured import Line, Measurements, Rate
from hecate.train.optim import build_optimizer

SHORT_REPEATS = 4  # as many more of what takes milliseconds, which varies more
Once = Callable[[], object]


@dataclass(frozen=True)
class MicroBenchmarks:
    """Everything that steps of ``job.workload`` are made of; the same on all ranks.

    The median of ``repeats`` each, more of what is short.
    """

    job: Job
    repeats: int

    def __call__(self, ctx: ParallelContext) -> Measurements:
        bench = _Bench(self.job, ctx, self.repeats)
        dense = time_dense(self.job, ctx, self.repeats)
        forward, backward = bench.experts()
        dispatch_s, back_s, arrange_s = bench.dispatch()
        gathers, reductions, steal = bench.copies()
        costs = measured_costs(
            CostsConfig(),
            bench.module,
            bench.layer,
            ctx,
            dtype=torch.float32,
            compute_dtype=torch.float32,
            folder=cache_folder(run_config(self.job).data.cache) / "costs",
        )
        reckoned = replace(
            costs.step, hidden_gather_s=dense.forward_s, hidden_reduce_s=2 * dense.forward_s
        )
        return Measurements(
            layer_forward_s=dense.forward_s,
            layer_backward_s=dense.backward_s,
            ends_s=dense.ends_s,
            dense_optimizer_s=dense.optimizer_s,
            expert_optimizer_s=bench.optimizer(self.job),
            dispatch_forward_s=dispatch_s,
            dispatch_backward_s=back_s,
            arrange_s=arrange_s,
            expert_forward=forward,
            expert_backward=backward,
            counts_s=bench.counts(),
            tokens=bench.exchange(),
            gathers=gathers,
            reductions=reductions,
            steal=steal,
            reckoned=reckoned,
            topology=costs.topology,
        )


class _Bench:
    """One layer's experts, dispatch and transfers, at the sizes of ``job.workload``."""

    def __init__(self, job: Job, ctx: ParallelContext, repeats: int) -> None:
        work = job.workload
        model = meta_model(hf_config(work.model, vocab_size=work.vocab_size))
        self.layer = find_moe_layers(model)[0]
        self.module = model.get_submodule(self.layer.name)
        self._ctx, self._repeats, self._work = ctx, repeats, work
        self._hidden = int(str(work.sizes["hidden_size"]))
        self._tokens = work.tokens_per_step // ctx.world_size
        self._slots = self._tokens * work.top_k
        self._own = max(1, work.num_experts // ctx.world_size)
        self._math = ExpertMath.of(self.module, self.layer.name)
        self._kernel = kernel_for(ctx.device, torch.float32, self.layer.layout)
        shape = (self._own, self.layer.layout.numel)
        self._weights_nC, self._grads_nC = 0.02 * torch.randn(shape), torch.zeros(shape)

    def experts(self) -> tuple[Line, Line]:
        """Seconds of rows through experts, forward and backward, at few rows each and at many."""
        mean = max(2, self._slots // self._own)
        points = [(rows, *self._expert_pass(rows)) for rows in (max(1, mean // 4), mean * 3 // 2)]
        (few, *few_s), (many, *many_s) = points
        forward, backward = (
            Line.through((few, a / self._own), (many, b / self._own))
            for a, b in zip(few_s, many_s, strict=True)
        )
        return forward, backward

    def _expert_pass(self, rows: int) -> tuple[float, float]:
        counts = [rows] * self._own
        x_RD = torch.randn(sum(counts), self._hidden)
        weights_R = torch.rand(sum(counts))
        passes = []
        for _ in range(1 + self._repeats):
            held = [self._held()]
            self._meet()
            marks = [time.perf_counter()]
            with torch.no_grad():
                y_RD, saved = self._kernel.forward(x_RD, weights_R, counts, held, self._math)
                marks.append(time.perf_counter())
                self._kernel.backward(y_RD, x_RD, weights_R, saved, counts, held, self._math)
                marks.append(time.perf_counter())
            passes.append((marks[1] - marks[0], marks[2] - marks[1]))
        forward, backward = zip(*passes[1:], strict=True)
        return slowest_s(forward, self._ctx), slowest_s(backward, self._ctx)

    def _held(self) -> ReplicaSlots:
        ids = tuple(range(self._own))
        return ReplicaSlots(self.layer, ids, self._weights_nC, self._grads_nC)

    def dispatch(self) -> tuple[float, float, float]:
        """A rank's own slots forward and backward, and one row laid out by expert and back."""
        work, ctx = self._work, self._ctx
        choices_TK = torch.from_numpy(
            even_choices(self._tokens, work.top_k, work.num_experts, ctx.rank)
        )
        owners = Placement.even(work.num_experts, ctx.world_size)
        held = [owners.chunks_on(rank) for rank in range(ctx.world_size)]
        counts_WE = np.tile(count_tokens(choices_TK, work.num_experts).numpy(), (ctx.world_size, 1))
        quotas_WEW = ExpertParallel().route(counts_WE, owners)
        plan = plan_dispatch(choices_TK, quotas_WEW, held, ctx.rank)
        x_TD = torch.randn(self._tokens, self._hidden)
        weights_S, y_SD = torch.rand(self._slots), torch.randn(self._slots, self._hidden)
        token_S = plan.slot_order_S // work.top_k

        def forward() -> None:
            count_tokens(choices_TK, work.num_experts)
            quotas = ExpertParallel().route(counts_WE, owners)
            again = plan_dispatch(choices_TK, quotas, held, ctx.rank)
            weights_S.index_select(0, again.slot_order_S)
            x_TD.index_select(0, again.slot_order_S // work.top_k)
            combine(y_SD, again.row_of_slot_TK)

        def backward() -> None:
            x_TD.index_select(0, token_S)
            combine(y_SD, plan.row_of_slot_TK)
            weights_S.index_select(0, plan.row_of_slot_TK.flatten())

        arrange_R = plan.slot_order_S

        def arrange() -> None:
            rows_RD = y_SD.index_select(0, arrange_R)
            torch.empty_like(rows_RD).index_copy_(0, arrange_R, rows_RD)

        return self._time(forward), self._time(backward), self._time(arrange) / self._slots

    def counts(self) -> float:
        """Seconds until everyone knows everyone's counts."""
        ctx = self._ctx
        counts_E = torch.ones(self._work.num_experts, dtype=torch.int64)
        return self._time(lambda: gather_counts(counts_E, ctx.groups.tokens, ctx.world_size))

    def exchange(self) -> Rate:
        """Half of the slots to the next rank: one way, from even ranks alone, and both ways."""
        ctx, rows = self._ctx, max(1, self._slots // 2)

        def send(there: int, back: int) -> Once:
            target, source = (ctx.rank + 1) % ctx.world_size, (ctx.rank - 1) % ctx.world_size
            ways = (there, back)
            out, into = ways[ctx.rank % 2], ways[source % 2]
            send_rows, receive_rows = [0] * ctx.world_size, [0] * ctx.world_size
            send_rows[target], receive_rows[source] = out, into
            rows_SD = torch.randn(out, self._hidden)
            return lambda: exchange_rows(rows_SD, send_rows, receive_rows, ctx.groups.tokens)

        return Rate.through(
            rows * self._hidden * 4,
            launch_s=self._time(send(1, 1)),
            one_way_s=self._time(send(rows, 0)),
            both_s=self._time(send(rows, rows)),
        )

    def copies(self) -> tuple[Rate, Rate, float]:
        """Gathers, reductions, and what a gather takes from computation beside it."""
        ctx = self._ctx
        folder = cache_folder() / "costs"
        gathers, reductions, _ = open_channels(ctx, AUTO, folder)
        numel, few = self.layer.layout.numel, max(1, self._own // 2)
        ways = {"launch": (1, 0, 1), "one_way": (few, 0, numel), "both": (few, few, numel)}
        rates = []
        for channel, reduces in ((gathers, False), (reductions, True)):
            taken = {
                name: self._time(self._launch(channel, there, back, size, reduces=reduces))
                for name, (there, back, size) in ways.items()
            }
            rates.append(
                Rate.through(
                    few * numel * 4,
                    launch_s=taken["launch"],
                    one_way_s=taken["one_way"],
                    both_s=taken["both"],
                )
            )
        return rates[0], rates[1], self._steal(gathers, few)

    def _steal(self, channel: Channel, few: int) -> float:
        """The longer computation beside a gather, over the gather alone."""
        numel = self.layer.layout.numel
        gather = self._start(channel, few, few, numel, reduces=False)
        alone_s = self._time(lambda: gather().wait())
        x_RD, weight_DD = torch.randn(256, self._hidden), torch.randn(self._hidden, self._hidden)

        def multiply(times: int) -> None:
            for _ in range(times):
                torch.mm(x_RD, weight_DD)

        times = 1 + int(2 * alone_s / (self._time(lambda: multiply(50)) / 50))

        def beside() -> None:
            moving = gather()
            multiply(times)
            moving.wait()

        longer_s = self._time(beside) - self._time(lambda: multiply(times))
        return min(1.0, max(0.0, longer_s / alone_s))

    def _launch(
        self, channel: Channel, there: int, back: int, numel: int, *, reduces: bool
    ) -> Once:
        start = self._start(channel, there, back, numel, reduces=reduces)
        return lambda: start().wait()

    def _start(
        self, channel: Channel, there: int, back: int, numel: int, *, reduces: bool
    ) -> Callable[[], Handle]:
        """``there`` chunks from rank 0 to rank 1 and ``back`` the other way, or their reduction."""
        ctx = self._ctx
        owners = Placement.from_owners([0] * there + [1] * back, ctx.world_size)
        copied = Placement(((0, 1),) * (there + back), ctx.world_size)
        changes = [Change(owners, copied, 4 * numel)]
        transport = channel.pick(changes)
        make = reduce_schedule if reduces else gather_schedule
        topology = Topology.single_node(ctx.world_size, UNBOUNDED)
        schedule = make(changes, topology, hierarchical=transport.hierarchical)
        collective = sparse_reduce_scatter if reduces else sparse_all_gather
        holds = ctx.rank < 2
        rows: list[Rows] = [
            {chunk: torch.zeros(numel) for chunk in range(there + back)} if holds else {}
        ]
        return lambda: collective(
            rows,
            changes,
            schedule=schedule,
            transport=transport,
            group=channel.group,
            rank=ctx.rank,
        )

    def optimizer(self, job: Job) -> float:
        """Norm, clipping and update of one parameter of an owned expert."""
        layers = self._work.num_layers
        owned = [nn.Parameter(self._weights_nC.clone()) for _ in range(layers)]
        for parameter in owned:
            parameter.grad = torch.full_like(parameter, 1e-3)
        named = [(f"layers.{index}.chunks", parameter) for index, parameter in enumerate(owned)]
        optimizer = build_optimizer(job.optimizer, named, ())

        def once() -> None:
            grad_square_sum(owned, owned, self._ctx.rank)
            clip_gradients(owned, 1.01, 1.0)
            optimizer.step()

        return self._time(once) / sum(parameter.numel() for parameter in owned)

    def _meet(self) -> None:
        dist.barrier(group=self._ctx.groups.control)

    def _time(self, once: Once) -> float:
        """Seconds until the last rank is done; all begin together."""
        taken = []
        for _ in range(1 + SHORT_REPEATS * self._repeats):
            self._meet()
            started = time.perf_counter()
            once()
            taken.append(time.perf_counter() - started)
        return slowest_s(taken[1:], self._ctx)
