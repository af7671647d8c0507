"""What the coming step's load will be: the mean of the last few (2502.02581, section 4.1). Pure."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Loads = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

WINDOW = 5


class LoadWindow:
    """Slots routed to each expert in the last ``window`` steps, ``[Y, E]`` each, over all ranks.

    Whole numbers until they are averaged, so that all ranks predict the same to the bit.
    """

    def __init__(self, num_layers: int, num_experts: int, window: int = WINDOW) -> None:
        self._window = window
        self._steps_wYE = np.zeros((0, num_layers, num_experts), dtype=np.int64)

    @property
    def has_history(self) -> bool:
        return len(self._steps_wYE) > 0

    def push(self, counts_YE: Counts) -> None:
        """Remember one step, and forget the one before the window."""
        if counts_YE.shape != self._steps_wYE.shape[1:]:
            raise ValueError(
                f"counts of shape {counts_YE.shape} for a window of "
                f"{self._steps_wYE.shape[1:]}; expected [layers, experts]"
            )
        recent = self._steps_wYE[1 - self._window :] if self._window > 1 else self._steps_wYE[:0]
        self._steps_wYE = np.concatenate([recent, counts_YE[None].astype(np.int64)])

    def predict(self) -> Loads:
        """The mean of the window, ``[Y, E]``; zeros where there is no history yet."""
        if not self.has_history:
            return np.zeros(self._steps_wYE.shape[1:])
        return np.asarray(self._steps_wYE.sum(0) / len(self._steps_wYE), dtype=np.float64)

    def state(self) -> Counts:
        """The steps of the window, oldest first, ``[w, Y, E]``; what ``restore`` takes."""
        return self._steps_wYE.copy()

    def restore(self, steps_wYE: Counts) -> None:
        shape = (-1, *self._steps_wYE.shape[1:])
        self._steps_wYE = np.asarray(steps_wYE, dtype=np.int64).reshape(shape)[-self._window :]
