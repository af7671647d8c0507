"""Steps in which rows have adapters, through our kernels.

The kernels add what adapters do that are in their slots. For those that are still on their way they
call back with what a projection is to read, so that the host may begin with its share, and with
what it has written, see ``Buffers``: then the share is waited for and added, or the layer is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from transformers.modeling_utils import PreTrainedModel

from serving.engine.batch import Piece
from serving.engine.compiled import CompiledForward
from serving.engine.residents import EXPERTS, LINEARS, Residents
from serving.lora.arrival import Arrival
from serving.lora.experts import Groups, add_changes, expert_groups
from serving.lora.layers import AdapterLayers
from serving.lora.packed import Packed, segment_product
from serving.lora.plan import Plan, make_plan
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
        self._plan: Plan | None = None  # of the rows whose adapters are late
        self._last: Plan | None = None  # the same of the rows that are sampled
        self._arrivals: Mapping[Place, Arrival] = {}
        self.projections: frozenset[str] = frozenset()  # those that some adapter changes
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
        self._arrivals = arrivals
        self._plan = self._plan_of(late)
        if self._plan is not None:
            self._last = self._plan_of([(1, late[number][1]) for number in sampled])
            forward.late = self
        forward.adapters = self._residents.of(here)
        try:
            return forward(pieces, sampled)
        finally:
            forward.adapters = forward.late = self._groups = self._plan = self._last = None

    def before(self, layer: int, projection: str) -> None:
        """Have the host begin with its share of a projection."""
        plan = self._rows(layer, projection)
        packed = [each for each, _ in self._parts(layer, projection) if each is not None]
        if plan is None or not packed:
            return
        x_TI, _ = self._halves(projection, packed[0].target.inputs, 0)
        targets = [each.target for each in packed]
        for segment in plan.segments:
            self._arrivals[segment.place].begin(targets, x_TI[segment.rows])

    def after(self, layer: int, projection: str) -> None:
        """Add what late adapters do."""
        plan = self._rows(layer, projection)
        if plan is None:
            return
        expert = self._packed(layer, EXPERTS[projection]) if projection in EXPERTS else None
        if expert is not None:
            self._add_to_experts(expert, projection, plan)
            return
        parts = self._parts(layer, projection)
        found = [each for each, _ in parts if each is not None]
        if not found:
            return
        widths = [width for _, width in parts]
        x_TI, y_TO = self._halves(projection, found[0].target.inputs, sum(widths))
        outs = y_TO.split(widths, dim=1)
        for segment in plan.segments:
            x_RI = x_TI[segment.rows]
            for (each, _), out_TO in zip(parts, outs, strict=True):
                if each is None:
                    continue
                share = partial(segment_product, x_RI, each.a_EPI[0], each.b_EPO[0], segment.place)
                out_TO[segment.rows] += self._arrivals[segment.place].share(
                    each.target, x_RI, share
                )

    def _plan_of(self, late: Sequence[tuple[int, Place | None]]) -> Plan | None:
        if not self._arrivals or not self._layers.packed:
            return None
        self.projections = self._changed()
        return make_plan(late, self._layers.costs, torch.device("cpu"), self._arrivals)

    def _changed(self) -> frozenset[str]:
        """Projections that some adapter changes in some layer."""
        kinds = {name.split(".", 3)[-1] for name in self._layers.packed}
        linears = {name for name, parts in LINEARS.items() if kinds & set(parts)}
        return frozenset(linears | {name for name, kind in EXPERTS.items() if kind in kinds})

    def _rows(self, layer: int, projection: str) -> Plan | None:
        """Those that are computed: in the last layer, once their keys are written, few."""
        last = layer + 1 == self._layers.targets.num_layers and projection != "qkv"
        return self._last if last else self._plan

    def _packed(self, layer: int, name: str) -> Packed | None:
        return self._layers.packed.get(f"{self._prefix}.{layer}.{name}")

    def _parts(self, layer: int, projection: str) -> list[tuple[Packed | None, int]]:
        """Of each linear layer whose columns the projection writes: its adapters, how many."""
        by_name = self._layers.targets.by_name
        found = []
        for name in LINEARS[projection]:
            target = by_name.get(f"{self._prefix}.{layer}.{name}")
            if target is not None:  # there are experts instead
                found.append((self._packed(layer, name), target.outputs))
        return found

    def _halves(
        self, projection: str, inputs: int, outputs: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What a projection reads and writes."""
        b, T = self._forward.buffers, self._forward.tokens
        if projection == "qkv":
            return b.normed_TD[:T], b.qkv_T[:T]
        if projection == "out":
            return b.attended_TN[:T], b.hidden_TD[:T]
        if projection == "gate_up":
            return b.normed_TD[:T], b.up_R[: T * outputs].view(T, -1)
        return b.act_RF[: T * inputs].view(T, -1), b.hidden_TD[:T]

    def _add_to_experts(self, packed: Packed, projection: str, plan: Plan) -> None:
        for arrival in self._arrivals.values():
            arrival.wait(packed.target.layer)
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
