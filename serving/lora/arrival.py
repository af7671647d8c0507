"""An adapter on its way to the device, while requests compute with it already.

Its layers come one after another. What a step needs of a layer that is not there yet comes from
the host (CPU-assisted prefill, CaraServe 2401.11240, section 4), or the step waits for the layer
(layer-wise pipelined loading).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

import torch

from serving.lora.targets import Target


class Assistant(Protocol):
    """Computes one adapter's share of a projection on the host."""

    def __call__(self, digest: str, target: Target, x_RI: torch.Tensor) -> torch.Tensor | None:
        """``[R, O]``, or None where nobody answers: then the layer has to be waited for."""
        ...


class Arrival:
    """``assistant``: None where steps wait. ``num_layers``: targets without a layer come first.

    ``landed`` is for the thread that loads, the rest for the one that computes.
    """

    def __init__(self, digest: str, num_layers: int, assistant: Assistant | None) -> None:
        self._digest = digest
        self._num_layers = num_layers
        self._assistant = assistant
        self._layers = 0
        self._changed = threading.Condition()
        self.assisted = 0  # projections that the host computed
        self.waited = 0  # layers that a step waited for

    def landed(self, layers: int) -> None:
        """The first ``layers`` layers are in their slot."""
        with self._changed:
            self._layers = layers
            self._changed.notify_all()

    @property
    def whole(self) -> bool:
        return self._layers >= self._num_layers

    def share(
        self, target: Target, x_RI: torch.Tensor, from_slot: Callable[[], torch.Tensor]
    ) -> torch.Tensor:
        """What the adapter makes of ``x_RI``: ``from_slot`` once the layer is there."""
        if self._layers <= target.layer:
            if self._assistant is not None:
                share_RO = self._assistant(self._digest, target, x_RI)
                if share_RO is not None:
                    self.assisted += 1
                    return share_RO
            self.wait(target.layer)
        return from_slot()

    def wait(self, layer: int) -> None:
        """Until the weights of ``layer`` are in their slot."""
        if self._layers > layer:
            return
        self.waited += 1
        with self._changed:
            self._changed.wait_for(lambda: self._layers > layer)
