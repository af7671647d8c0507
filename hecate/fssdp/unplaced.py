"""Experts of a layer without weights, values or peers: only what they would allocate.

On the meta device a layer's experts allocate here what they do in training, by the same autograd
node and the same kernels, for as many rows as the caller says. That is how the memory of a step is
known before there is one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hecate.fssdp.dispatch import DispatchPlan
from hecate.fssdp.experts import ExpertKernel, ExpertMath, Saved
from hecate.fssdp.routed import RoutedNode
from hecate.models.families import MoELayer

META = torch.device("meta")
_MOST_WITH_ROWS = 8  # experts beyond these would add operations, and no memory


@dataclass(frozen=True)
class HeldShapes:
    """The experts that a rank computes with, as shapes: ``count`` of them."""

    weights: dict[str, torch.Tensor]
    grads: dict[str, torch.Tensor]

    @classmethod
    def of(
        cls, layer: MoELayer, count: int, dtype: torch.dtype, compute_dtype: torch.dtype
    ) -> HeldShapes:
        shape = (count, layer.layout.numel)
        weights_eC = torch.empty(shape, dtype=compute_dtype, device=META)
        grads_eC = torch.empty(shape, dtype=dtype, device=META)
        return cls(layer.layout.views(weights_eC), layer.layout.views(grads_eC))

    def begin_backward(self) -> bool:
        return True


class UnplacedExperts:
    """The runtime behind one experts module on the meta device.

    ``num_rows``: slots that the rank computes. ``crosses``: whether rows travel between ranks.
    """

    def __init__(
        self,
        held: HeldShapes,
        math: ExpertMath,
        kernel: ExpertKernel,
        *,
        num_rows: int,
        crosses: bool,
    ) -> None:
        self._held, self._math, self._kernel = held, math, kernel
        self._rows = _spread(num_rows, next(iter(held.weights.values())).shape[0])
        self._crosses = crosses

    def __call__(
        self, x_TD: torch.Tensor, top_k_index_TK: torch.Tensor, top_k_weights_TK: torch.Tensor
    ) -> torch.Tensor:
        dtype = next(iter(self._held.weights.values())).dtype
        slots, num_rows = top_k_index_TK.numel(), sum(self._rows)
        arrange_R = torch.empty(num_rows, dtype=torch.int64, device=META) if self._crosses else None
        plan = DispatchPlan(
            slot_order_S=torch.empty(slots, dtype=torch.int64, device=META),
            row_of_slot_TK=torch.empty_like(top_k_index_TK, dtype=torch.int64),
            send_rows=(slots,),
            receive_rows=(num_rows,),
            crosses=self._crosses,
            arrange_R=arrange_R,
            rows_per_expert=self._rows,
        )
        anchor = torch.empty(0, device=META, requires_grad=True)
        result: torch.Tensor = RoutedNode.apply(  # type: ignore[no-untyped-call]
            x_TD.to(dtype), top_k_weights_TK.to(dtype), anchor, plan, self
        )
        return result.to(x_TD.dtype)

    def forward_rows(
        self, x_SD: torch.Tensor, weights_S: torch.Tensor, plan: DispatchPlan
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Saved]:
        """As ``RoutedExperts`` does it, the exchange an allocation."""
        x_RD, weights_R = self._there(x_SD, plan), self._there(weights_S, plan)
        y_RD, saved = self._kernel.forward(
            x_RD, weights_R, plan.rows_per_expert, (self._held,), self._math
        )
        return self._back(y_RD, plan), x_RD, weights_R, saved

    def backward_rows(
        self,
        d_y_SD: torch.Tensor,
        x_RD: torch.Tensor,
        weights_R: torch.Tensor,
        saved: Saved,
        plan: DispatchPlan,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As ``RoutedExperts`` does it, the exchange an allocation."""
        d_y_RD = self._there(d_y_SD, plan)
        d_x_RD, d_weights_R = self._kernel.backward(
            d_y_RD, x_RD, weights_R, saved, plan.rows_per_expert, (self._held,), self._math
        )
        return self._back(d_x_RD, plan), self._back(d_weights_R, plan)

    def _there(self, rows_SD: torch.Tensor, plan: DispatchPlan) -> torch.Tensor:
        if not plan.crosses or plan.arrange_R is None:
            return rows_SD
        received_RD = rows_SD.new_empty(sum(plan.receive_rows), *rows_SD.shape[1:])
        return received_RD.index_select(0, plan.arrange_R)

    def _back(self, rows_RD: torch.Tensor, plan: DispatchPlan) -> torch.Tensor:
        if not plan.crosses:
            return rows_RD
        by_source_RD = torch.empty_like(rows_RD)
        return by_source_RD.new_empty(sum(plan.send_rows), *rows_RD.shape[1:])


def _spread(num_rows: int, num_experts: int) -> tuple[int, ...]:
    """``num_rows`` over the first experts, evenly; the others have none."""
    with_rows = min(num_experts, _MOST_WITH_ROWS)
    each, odd = divmod(num_rows, max(1, with_rows))
    counts = [each + (expert < odd) for expert in range(with_rows)]
    return tuple(counts + [0] * (num_experts - with_rows))
