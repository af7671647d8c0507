"""All experts in one launch per product, by ``F.grouped_mm``, which is what a GPU wants."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F

from hecate.fssdp.experts.math import ExpertMath, activation_grad, biases, projections
from hecate.fssdp.experts.protocol import HeldExperts, Saved, parts
from hecate.fssdp.upload import upload


class GroupedExperts:
    """All experts of a part in one launch per product, by ``F.grouped_mm``."""

    def forward(
        self,
        x_RD: torch.Tensor,
        weights_R: torch.Tensor,
        rows: Sequence[int],
        held: Sequence[HeldExperts],
        math: ExpertMath,
    ) -> tuple[torch.Tensor, Saved]:
        done = []
        for experts, counts, a in parts(rows, held):
            b = a + sum(counts)
            done.append(self._forward(x_RD[a:b], weights_R[a:b], counts, experts, math))
        up_RF, act_RF, y_RD = (_joined(tensors) for tensors in zip(*done, strict=True))
        return y_RD, Saved(up_RF, act_RF, None)

    def _forward(
        self,
        x_RD: torch.Tensor,
        weights_R: torch.Tensor,
        rows: Sequence[int],
        experts: HeldExperts,
        math: ExpertMath,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        up_eFD, down_eDF = projections(experts.weights, math)
        if not x_RD.shape[0]:  # CUDA launches nothing for no experts, which some ranks own
            sizes = (up_eFD.shape[1], down_eDF.shape[2], x_RD.shape[1])
            up_RF, act_RF, y_RD = (x_RD.new_empty(0, size) for size in sizes)
            return up_RF, act_RF, y_RD
        bias = biases(experts.weights, math)
        ends = _ends(rows, x_RD.device)
        expert_R = _expert_of_row(rows, x_RD.device) if bias else None
        up_RF = F.grouped_mm(x_RD, up_eFD.transpose(1, 2), offs=ends)
        if bias:
            up_RF = up_RF + bias[0][expert_R]
        act_RF = math.activate(up_RF) * weights_R[:, None]
        y_RD = F.grouped_mm(act_RF, down_eDF.transpose(1, 2), offs=ends)
        if bias:
            y_RD = y_RD + weights_R[:, None] * bias[1][expert_R]
        return up_RF, act_RF, y_RD

    def backward(
        self,
        d_y_RD: torch.Tensor,
        x_RD: torch.Tensor,
        weights_R: torch.Tensor,
        saved: Saved,
        rows: Sequence[int],
        held: Sequence[HeldExperts],
        math: ExpertMath,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        done = []
        for experts, counts, a in parts(rows, held):
            b = a + sum(counts)
            kept = Saved(saved.up_RF[a:b], saved.act_RF[a:b], None)
            done.append(
                self._backward(d_y_RD[a:b], x_RD[a:b], weights_R[a:b], kept, counts, experts, math)
            )
        d_x_RD, d_weights_R = (_joined(tensors) for tensors in zip(*done, strict=True))
        return d_x_RD, d_weights_R

    def _backward(
        self,
        d_y_RD: torch.Tensor,
        x_RD: torch.Tensor,
        weights_R: torch.Tensor,
        saved: Saved,
        rows: Sequence[int],
        experts: HeldExperts,
        math: ExpertMath,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        overwrite = experts.begin_backward()
        if not x_RD.shape[0]:
            if overwrite:
                for grad in experts.grads.values():
                    grad.zero_()
            return torch.empty_like(x_RD), torch.empty_like(weights_R)
        up_eFD, down_eDF = projections(experts.weights, math)
        d_up_eFD, d_down_eDF = projections(experts.grads, math)
        ends = _ends(rows, x_RD.device)
        d_act_RF = F.grouped_mm(d_y_RD, down_eDF, offs=ends)
        d_up_RF, d_weights_R = activation_grad(math, saved.up_RF, weights_R, d_act_RF)
        updates = [
            (d_down_eDF, F.grouped_mm(d_y_RD.t(), saved.act_RF, offs=ends)),
            (d_up_eFD, F.grouped_mm(d_up_RF.t(), x_RD, offs=ends)),
        ]
        if math.has_bias:
            expert_R = _expert_of_row(rows, x_RD.device)
            bias_eD = biases(experts.weights, math)[1]
            d_weights_R = d_weights_R + (d_y_RD * bias_eD[expert_R]).sum(-1)
            of_rows = (d_up_RF, d_y_RD * weights_R[:, None])
            for grad, d in zip(biases(experts.grads, math), of_rows, strict=True):
                total = torch.zeros_like(grad)
                total.index_add_(0, expert_R, d.to(grad.dtype))
                updates.append((grad, total))
        for grad, update in updates:
            grad.copy_(update) if overwrite else grad.add_(update)
        return F.grouped_mm(d_up_RF, up_eFD, offs=ends), d_weights_R


def _ends(rows: Sequence[int], device: torch.device) -> torch.Tensor:
    return upload(torch.tensor(list(accumulate(rows)), dtype=torch.int32), device)


def _expert_of_row(rows: Sequence[int], device: torch.device) -> torch.Tensor:
    return upload(torch.repeat_interleave(torch.tensor(list(rows))), device)


def _joined(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))
