"""Adapters beside the layers of a loaded model, many in one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from serving.lora.adapters import Adapter
from serving.lora.arrival import Arrival
from serving.lora.costs import UNMEASURED, FormCosts
from serving.lora.experts import adapted_experts
from serving.lora.packed import Packed
from serving.lora.plan import Plan, make_plan
from serving.lora.slots import Place
from serving.lora.targets import Targets


class AdapterLayers:
    """The packed adapters of a model, and what makes its layers use them.

    A layer is touched when the first adapter comes that changes it; steps of which no row has an
    adapter go through the model as it was. Everything but ``write`` is for the thread that computes
    steps; ``write`` may run in another, in a slot that no step under way uses.
    """

    def __init__(
        self,
        model: nn.Module,
        targets: Targets,
        rows: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.targets = targets
        self.costs: FormCosts = UNMEASURED
        self._model = model
        self._rows = rows
        self._dtype = dtype
        self._device = device
        self.packed: dict[str, Packed] = {}
        self._of_experts: dict[str, dict[str, Packed]] = {}
        self.plan: Plan | None = None
        self.arrivals: Mapping[Place, Arrival] = {}

    @property
    def num_bytes(self) -> int:
        return sum(each.a_EPI.nbytes + each.b_EPO.nbytes for each in self.packed.values())

    def attach(self, changed: Sequence[str]) -> None:
        """Make room for adapters of these targets, and have their layers use them."""
        for name in changed:
            if name in self.packed:
                continue
            target = self.targets.by_name[name]
            packed = Packed.empty(target, self._rows, self._dtype, self._device)
            self.packed[name] = packed
            module = self._model.get_submodule(target.module)
            if not target.parameter:
                module.register_forward_hook(self._hook(packed))
                continue
            if target.module not in self._of_experts:
                self._of_experts[target.module] = {}
                module.forward = self._forward(module, self._of_experts[target.module])
            self._of_experts[target.module][target.parameter] = packed

    def write(self, place: Place, adapter: Adapter, layer: int) -> None:
        """Fill a slot in one layer; everything that ``adapter`` changes is attached."""
        for name, packed in list(self.packed.items()):
            if packed.target.layer == layer:
                packed.write(place, adapter.changes.get(name))

    @contextmanager
    def step(
        self,
        runs: Sequence[tuple[int, Place | None]],
        arrivals: Mapping[Place, Arrival] | None = None,
    ) -> Iterator[None]:
        """Within it the model's next rows go through these adapters: so many through each."""
        self.arrivals = arrivals or {}
        if self.packed:
            self.plan = make_plan(runs, self.costs, self._device, self.arrivals)
        try:
            yield
        finally:
            self.plan = None

    def wait(self, layer: int) -> None:
        """For the weights of a layer of experts, of all adapters of the step."""
        for arrival in self.arrivals.values():
            arrival.wait(layer)

    def _hook(self, packed: Packed) -> Callable[[nn.Module, Any, torch.Tensor], torch.Tensor]:
        def hook(module: nn.Module, inputs: Any, out: torch.Tensor) -> torch.Tensor:
            if self.plan is not None:
                x_RI = self.plan.rows_of(inputs[0].flatten(0, -2))
                packed.add(self.plan, x_RI, out.view(-1, out.shape[-1]), self.arrivals)
            return out

        return hook

    def _forward(self, module: nn.Module, packed: dict[str, Packed]) -> Callable[..., torch.Tensor]:
        plain = module.forward

        def forward(
            hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
        ) -> torch.Tensor:
            if self.plan is None:
                out: torch.Tensor = plain(hidden_states, top_k_index, top_k_weights)
                return out
            for each in packed.values():
                self.wait(each.target.layer)
            return adapted_experts(
                module, hidden_states, top_k_index, top_k_weights, self.plan, packed, self.costs
            )

        return forward
