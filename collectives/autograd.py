"""Sparse all-gather and reduce-scatter that autograd differentiates: each is the other's backward.

Copying an owner's row to its holders and adding the holders' rows up at the owner are adjoint
linear maps: ``<spAG(x), y> = <x, spRS(y)>`` over all ranks (2502.02581, section 3.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist

from collectives.placement import Placement
from collectives.schedule import Change, Schedule, gather_schedule
from collectives.sparse import sparse_all_gather, sparse_reduce_scatter
from collectives.topology import Topology
from collectives.transports.protocol import Transport


@dataclass(frozen=True)
class SparseExchange:
    """What both directions need; ``changes`` are those of the gather, the two groups differ.

    A rank's rows come as one flat sequence: its *own* rows are those of the chunks that it owns,
    its *held* rows those of the chunks that it holds afterwards, each by layer and then by chunk.
    Rows are contiguous ``[C]`` of ``dtype`` on ``device``.
    """

    changes: tuple[Change, ...]
    topology: Topology
    transport: Transport
    gather_group: dist.ProcessGroup
    reduce_group: dist.ProcessGroup
    rank: int
    dtype: torch.dtype
    device: torch.device

    @cached_property
    def own_places(self) -> tuple[tuple[int, int], ...]:
        """(layer, chunk) of each own row."""
        return _places([change.before for change in self.changes], self.rank)

    @cached_property
    def held_places(self) -> tuple[tuple[int, int], ...]:
        """(layer, chunk) of each held row."""
        return _places([change.after for change in self.changes], self.rank)

    @cached_property
    def _schedule(self) -> Schedule:
        return gather_schedule(
            self.changes, self.topology, hierarchical=self.transport.hierarchical
        )

    @cached_property
    def _mirrored(self) -> Schedule:
        return self._schedule.mirrored()

    def gather(self, own: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Held rows from own rows: new tensors, except that own rows are returned as they are."""
        rows = self._rows(own, self.own_places)
        for layer, chunk in self.held_places:
            if chunk not in rows[layer]:
                rows[layer][chunk] = torch.empty(
                    self.changes[layer].chunk_bytes // self.dtype.itemsize,
                    dtype=self.dtype,
                    device=self.device,
                )
        sparse_all_gather(
            rows,
            self.changes,
            schedule=self._schedule,
            transport=self.transport,
            group=self.gather_group,
            rank=self.rank,
        ).wait()
        return tuple(rows[layer][chunk] for layer, chunk in self.held_places)

    def reduce(self, held: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Own rows from held rows, which are overwritten: the sums over all holders."""
        rows = self._rows(held, self.held_places)
        sparse_reduce_scatter(
            rows,
            self.changes,
            schedule=self._mirrored,
            transport=self.transport,
            group=self.reduce_group,
            rank=self.rank,
        ).wait()
        return tuple(rows[layer][chunk] for layer, chunk in self.own_places)

    def _rows(
        self, given: Sequence[torch.Tensor], places: Sequence[tuple[int, int]]
    ) -> list[dict[int, torch.Tensor]]:
        if len(given) != len(places):
            raise ValueError(
                f"rank {self.rank}: {len(given)} rows given; expected {len(places)}, "
                f"of (layer, chunk) {list(places)}"
            )
        rows: list[dict[int, torch.Tensor]] = [{} for _ in self.changes]
        for row, (layer, chunk) in zip(given, places, strict=True):
            rows[layer][chunk] = row
        return rows


@dataclass(frozen=True)
class Exchanged:
    """``rows`` as their exchange orders them, and ``tie``: a 0 that depends on the exchange.

    Backward is a collective. A rank whose loss uses none of its rows, or that has none, adds
    ``tie`` to its loss, or it does not join in and the other ranks wait for it in vain.
    """

    rows: tuple[torch.Tensor, ...]
    tie: torch.Tensor


def gather_rows(exchange: SparseExchange, own: Sequence[torch.Tensor]) -> Exchanged:
    """Held rows from own rows; gradients of all holders add up at the owner."""
    *rows, tie = SparseAllGather.apply(  # type: ignore[no-untyped-call]
        exchange, _anchor(exchange), *own
    )
    return Exchanged(tuple(rows), tie)


def reduce_rows(exchange: SparseExchange, held: Sequence[torch.Tensor]) -> Exchanged:
    """Own rows, each the sum of all holders' rows; its gradient is copied to every holder."""
    *rows, tie = SparseReduceScatter.apply(  # type: ignore[no-untyped-call]
        exchange, _anchor(exchange), *held
    )
    return Exchanged(tuple(rows), tie)


class SparseAllGather(torch.autograd.Function):
    """``gather_rows`` as autograd sees it: ``apply(exchange, anchor, *own)``."""

    @staticmethod
    def forward(
        ctx: Any, exchange: SparseExchange, anchor: torch.Tensor, *own: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        ctx.exchange = exchange
        return (*exchange.gather(own), anchor.new_zeros(()))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        exchanged = reduce_rows(ctx.exchange, grads[:-1])
        return (None, None, *exchanged.rows)


class SparseReduceScatter(torch.autograd.Function):
    """``reduce_rows`` as autograd sees it: ``apply(exchange, anchor, *held)``."""

    @staticmethod
    def forward(
        ctx: Any, exchange: SparseExchange, anchor: torch.Tensor, *held: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        ctx.exchange = exchange
        copies = [row.clone(memory_format=torch.contiguous_format) for row in held]
        return (*exchange.reduce(copies), anchor.new_zeros(()))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        exchanged = gather_rows(ctx.exchange, [grad.contiguous() for grad in grads[:-1]])
        return (None, None, *exchanged.rows)


def _anchor(exchange: SparseExchange) -> torch.Tensor:
    """An input that needs a gradient, so that backward also runs on ranks without rows."""
    anchor = torch.zeros((), dtype=exchange.dtype, device=exchange.device)
    return anchor.requires_grad_(torch.is_grad_enabled())


def _places(placements: Sequence[Placement], rank: int) -> tuple[tuple[int, int], ...]:
    return tuple(
        (layer, chunk)
        for layer, placement in enumerate(placements)
        for chunk in placement.chunks_on(rank)
    )
