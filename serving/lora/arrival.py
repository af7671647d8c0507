"""An adapter on its way to the device, while requests compute with it already.

Its layers come one after another. What a step needs of a layer that is not there yet comes from
the host (CPU-assisted prefill, CaraServe 2401.11240, section 4), or the step waits for the layer
(layer-wise pipelined loading).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch

from serving.lora.adapters import Adapter
from serving.lora.targets import Target


class Share(Protocol):
    """What an adapter makes of some rows, being computed on the host."""

    def __call__(self) -> Mapping[str, torch.Tensor] | None:
        """``[R, O]`` by target, good until the next is begun, once all are there; None where
        nobody answers: then the layer has to be waited for."""
        ...


class Assistant(Protocol):
    """Computes adapters' shares of projections on the host."""

    def begin(self, digest: str, targets: Sequence[Target], x_RI: torch.Tensor) -> Share | None:
        """Of ``targets``, which read the same; None where it cannot. To be called in the order in
        which they were begun, each one once."""
        ...


class Arrival:
    """``assistant``: None where steps wait. ``num_layers``: targets without a layer come first.
    ``adapter``: in the host's memory, of one that never comes, but that the host does all of.

    ``landed`` is for the thread that loads, the rest for the one that computes.
    """

    def __init__(
        self,
        digest: str,
        num_layers: int,
        assistant: Assistant | None,
        adapter: Adapter | None = None,
    ) -> None:
        self._digest = digest
        self._num_layers = num_layers
        self._assistant = assistant
        self._adapter = adapter
        self._layers = 0
        self._changed = threading.Condition()
        self._begun: tuple[Share, frozenset[str]] | None = None
        self._shares: dict[str, torch.Tensor] = {}
        self.assisted = 0  # projections that the host computed
        self.assisted_s = 0.0  # how long they held steps up
        self.waited = 0  # layers that a step waited for
        self.waited_s = 0.0

    def landed(self, layers: int) -> None:
        """The first ``layers`` layers are in their slot."""
        with self._changed:
            self._layers = layers
            self._changed.notify_all()

    @property
    def whole(self) -> bool:
        return self._layers >= self._num_layers

    def begin(self, targets: Sequence[Target], x_RI: torch.Tensor) -> None:
        """Have the host begin with what ``share`` is asked for next, if it has to."""
        if self._assistant is None or self._layers > targets[0].layer:
            return
        begun_s = time.perf_counter()
        share = self._assistant.begin(self._digest, targets, x_RI)
        if share is not None:
            self._begun = share, frozenset(target.name for target in targets)
        self.assisted_s += time.perf_counter() - begun_s

    def share(
        self, target: Target, x_RI: torch.Tensor, from_slot: Callable[[], torch.Tensor]
    ) -> torch.Tensor:
        """What the adapter makes of ``x_RI``: ``from_slot`` once the layer is there."""
        if self._begun is None and target.name not in self._shares:
            self.begin([target], x_RI)
        if self._begun is not None and target.name in self._begun[1]:
            self._take(self._begun[0])
        share_RO = self._shares.pop(target.name, None)
        if share_RO is not None:
            return share_RO
        if self._adapter is not None:
            return _product(self._adapter, target, x_RI)
        self.wait(target.layer)
        return from_slot()

    def wait(self, layer: int) -> None:
        """Until the weights of ``layer`` are in their slot."""
        if self._layers > layer:
            return
        begun_s = time.perf_counter()
        with self._changed:
            self._changed.wait_for(lambda: self._layers > layer)
        self.waited += 1
        self.waited_s += time.perf_counter() - begun_s

    def _take(self, share: Share) -> None:
        begun_s = time.perf_counter()
        self._begun = None
        self._shares = dict(share() or {})
        self.assisted += len(self._shares)
        self.assisted_s += time.perf_counter() - begun_s


def _product(adapter: Adapter, target: Target, x_RI: torch.Tensor) -> torch.Tensor:
    """A share by this thread itself, where nobody else computes it."""
    change = adapter.changes.get(target.name)
    if change is None:
        return x_RI.new_zeros(x_RI.shape[0], target.outputs)
    a_rI, b_rO = change.a_ErI[0].to(x_RI.device), change.b_ErO[0].to(x_RI.device)
    return (x_RI @ a_rI.t()) @ b_rO
