"""Steps in which rows have adapters, through our kernels: what adapters add, after each projection.

The kernels add what adapters do that are in their slots. For those that are still on their way they
call back with what a projection read and has written, see ``Buffers``: that may wait for a layer,
or ask the host.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import torch
from transformers.modeling_utils import PreTrainedModel

from serving.engine.batch import Piece
from serving.engine.compiled import CompiledForward
from serving.engine.residents import EXPERTS, LINEARS, Residents
from serving.lora.arrival import Arrival
from serving.lora.experts import Groups, add_changes, expert_groups
from serving.lora.layers import AdapterLayers
from serving.lora.packed import Packed
from serving.lora.plan import Plan
from serving.lora.slots import Place


class CompiledAdapted:
    """``forward`` with the adapters of ``layers``."""

    def __init__(
        self, forward: CompiledForward, model: PreTrainedModel, layers: AdapterLayers
    ) -> None:
        self._forward = forward
        self._layers = layers
        self._prefix = f"{model.base_model_prefix}.layers"
        self._residents = Residents(layers, self._prefix)
        self._plan: Plan | None = None
        self._groups: tuple[Groups, torch.Tensor] | None = None  # of the layer of experts under way

    def knows(self, targets: Sequence[str]) -> bool:
        """Whether each of ``targets`` is a projection that the kernels call back after."""
        known = {name for names in LINEARS.values() for name in names} | set(EXPERTS.values())
        return all(
            name.startswith(self._prefix) and name.split(".", 3)[-1] in known for name in targets
        )

    def __call__(
        self,
        pieces: Sequence[Piece],
        sampled: Sequence[int],
        runs: Sequence[tuple[int, Place | None]],
        arrivals: Mapping[Place, Arrival],
    ) -> torch.Tensor:
        """``runs``: how many of the step's next rows have which adapter; ``arrivals``: those of
        the adapters that are on their way."""
        late = [(count, place if place in arrivals else None) for count, place in runs]
        here = [(count, None if place in arrivals else place) for count, place in runs]
        forward = self._forward
        with self._layers.step(late, arrivals) if arrivals else nullcontext():
            self._plan = self._layers.plan
            forward.adapters = self._residents.of(here)
            forward.after = self._after if self._plan is not None else None
            try:
                return forward(pieces, sampled)
            finally:
                forward.adapters = forward.after = self._groups = None

    def _after(self, layer: int, projection: str) -> None:
        assert self._plan is not None
        expert = self._packed(layer, EXPERTS[projection]) if projection in EXPERTS else None
        if expert is not None:
            self._add_to_experts(expert, projection, self._plan)
            return
        names = LINEARS[projection]
        packed = [self._packed(layer, name) for name in names]
        if any(each is not None for each in packed):
            self._add(packed, layer, projection, self._plan)

    def _packed(self, layer: int, name: str) -> Packed | None:
        return self._layers.packed.get(f"{self._prefix}.{layer}.{name}")

    def _add(
        self, packed: Sequence[Packed | None], layer: int, projection: str, plan: Plan
    ) -> None:
        b, T = self._forward.buffers, self._forward.tokens
        names = [f"{self._prefix}.{layer}.{name}" for name in LINEARS[projection]]
        widths = [self._layers.targets.by_name[name].outputs for name in names]
        if projection == "qkv":
            x_TI, y_TO = b.normed_TD[:T], b.qkv_T[:T]
        elif projection == "out":
            x_TI, y_TO = b.attended_TN[:T], b.hidden_TD[:T]
        elif projection == "gate_up":
            x_TI, y_TO = b.normed_TD[:T], b.up_R[: T * sum(widths)].view(T, -1)
        else:
            inputs = self._layers.targets.by_name[names[0]].inputs
            x_TI, y_TO = b.act_RF[: T * inputs].view(T, -1), b.hidden_TD[:T]
        x_RI = plan.rows_of(x_TI)
        for each, out_TO in zip(packed, y_TO.split(widths, dim=1), strict=True):
            if each is not None:
                each.add(plan, x_RI, out_TO, self._layers.arrivals)

    def _add_to_experts(self, packed: Packed, projection: str, plan: Plan) -> None:
        self._layers.wait(packed.target.layer)
        b = self._forward.buffers
        E, _, inputs = packed.a_EPI.shape
        outputs = packed.b_EPO.shape[2]
        offsets_E1 = b.offsets_E1[: E + 1].long()
        R = int(offsets_E1[-1])
        K = R // self._forward.tokens
        if projection == "gate_up" or self._groups is None:
            token_R = b.order_R[:R].long() // K
            expert_R = torch.arange(E).repeat_interleave(offsets_E1.diff())
            place_R = plan.place_T[token_R]
            row_r = place_R.nonzero()[:, 0]
            key_r = expert_R[row_r] * (len(plan.places) + 1) + place_R[row_r]
            key_r, order_r = key_r.sort(stable=True)
            self._groups = expert_groups(key_r, plan, self._layers.costs), row_r[order_r]
        groups, row_r = self._groups
        if projection == "gate_up":
            x_rI = b.normed_TD[b.order_R[:R].long()[row_r] // K]
            y_RO = b.up_R[: R * outputs].view(R, outputs)
        else:
            x_rI = b.act_RF[: R * inputs].view(R, inputs)[row_r]
            y_RO = b.pairs_RD[:R]
            self._groups = None
        change_rO = x_rI.new_zeros(len(row_r), outputs)
        add_changes(groups, packed, x_rI, change_rO)
        y_RO.index_add_(0, row_r, change_rO.to(y_RO.dtype))
