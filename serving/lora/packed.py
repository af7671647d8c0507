"""Adapters' halves on the device, those of one projection packed in two tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch

from serving.lora.adapters import LowRank
from serving.lora.arrival import Arrival
from serving.lora.plan import Padded, Plan
from serving.lora.slots import Place
from serving.lora.targets import Target


@dataclass(frozen=True)
class Packed:
    """Both halves of every adapter in its slot; rows beyond an adapter's rank are zero.

    ``rank_P``: ``[P]`` int32 on the CPU, at the first row of each slot in use: its adapter's rank
    in this projection, 0 where it leaves it as it is. For code that reads the slots by itself.
    """

    target: Target
    a_EPI: torch.Tensor
    b_EPO: torch.Tensor
    rank_P: torch.Tensor

    @classmethod
    def empty(cls, target: Target, rows: int, dtype: torch.dtype, device: torch.device) -> Packed:
        E = target.experts
        return cls(
            target,
            torch.zeros(E, rows, target.inputs, dtype=dtype, device=device),
            torch.zeros(E, rows, target.outputs, dtype=dtype, device=device),
            torch.zeros(rows, dtype=torch.int32),
        )

    def write(self, place: Place, change: LowRank | None) -> None:
        """Fill a slot; with nothing, where the adapter leaves this projection as it is."""
        rank = change.rank if change is not None else 0
        for packed, half in (
            (self.a_EPI, change.a_ErI if change is not None else None),
            (self.b_EPO, change.b_ErO if change is not None else None),
        ):
            if half is not None:
                packed[:, place.start : place.start + rank].copy_(half, non_blocking=True)
            packed[:, place.start + rank : place.stop].zero_()
        self.rank_P[place.start] = rank

    def add(
        self,
        plan: Plan,
        x_RI: torch.Tensor,
        out_TO: torch.Tensor,
        arrivals: Mapping[Place, Arrival],
    ) -> None:
        """Add to the rows of ``out_TO``, a linear layer's, what their adapters make of what the
        layer read: ``plan.rows_of`` it. ``arrivals``: adapters on their way, by their places."""
        change_RO = x_RI.new_empty(x_RI.shape[0], out_TO.shape[1])
        a_PI, b_PO = self.a_EPI[0], self.b_EPO[0]
        for group in plan.padded:
            change_RO[group.start : group.stop] = padded_product(
                x_RI[group.start : group.stop], a_PI, b_PO, group
            )
        for segment in plan.segments:
            own_RI = x_RI[segment.start : segment.stop]
            share = partial(segment_product, own_RI, a_PI, b_PO, segment.place)
            arrival = arrivals.get(segment.place)
            change_RO[segment.start : segment.stop] = (
                share() if arrival is None else arrival.share(self.target, own_RI, share)
            )
        if plan.whole:
            out_TO += change_RO
        else:
            out_TO.index_add_(0, plan.row_R, change_RO.to(out_TO.dtype))


def padded_product(
    x_RI: torch.Tensor, a_PI: torch.Tensor, b_PO: torch.Tensor, group: Padded
) -> torch.Tensor:
    """``[R, O]``: each row with its own copy of its slot."""
    a_RwI = a_PI.unflatten(0, (-1, group.width))[group.slot_R]
    b_RwO = b_PO.unflatten(0, (-1, group.width))[group.slot_R]
    low_Rw1 = torch.bmm(a_RwI, x_RI[:, :, None])
    return torch.bmm(low_Rw1.transpose(1, 2), b_RwO)[:, 0]


def segment_product(
    x_RI: torch.Tensor, a_PI: torch.Tensor, b_PO: torch.Tensor, place: Place
) -> torch.Tensor:
    """``[R, O]``: rows of one adapter."""
    return (x_RI @ a_PI[place.start : place.stop].t()) @ b_PO[place.start : place.stop]
