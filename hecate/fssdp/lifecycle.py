"""Where a training loop stands with its experts, and what may come next.

Gradients of copies go home with the last micro-batch of a step, and the experts change hands
between two steps. A call in the wrong place would train on wrong gradients without a word; here it
is an error that says which call is missing.
"""

from __future__ import annotations

import enum

from hecate.errors import UsageError

_LOOP = "with experts.step(): ...; optimizer.step(); experts.end_step(optimizer)"


class Stage(enum.Enum):
    """``RESTING -> RUNNING -> REDUCED -> RESTING`` in each step."""

    RESTING = "between steps"
    RUNNING = "in a step"
    REDUCED = "after the backward passes of a step, before its end_step"


class StepLifecycle:
    """The stage of the current step, and its micro-batches as they pass the first MoE layer."""

    def __init__(self) -> None:
        self.stage = Stage.RESTING
        self._announced = self._forward = self._backward = 0

    def begin(self, num_micro_batches: int) -> None:
        if self.stage is not Stage.RESTING:
            raise UsageError(
                "a step begins before the one before has ended",
                got=f"begin_step {self.stage.value}",
                expected=_LOOP,
                fix="call experts.end_step(optimizer) after optimizer.step()",
            )
        if num_micro_batches < 1:
            raise UsageError(
                "a step needs at least one micro-batch",
                got=str(num_micro_batches),
                fix="pass how often the step goes forward and backward",
            )
        self.stage = Stage.RUNNING
        self._announced, self._forward, self._backward = num_micro_batches, 0, 0

    def require_step(self, layer: str) -> None:
        """A differentiable pass reaches ``layer``."""
        if self.stage is not Stage.RUNNING:
            raise UsageError(
                f"a forward pass reaches {layer} outside a step, with gradients to follow",
                got=f"model(...) {self.stage.value}",
                expected=_LOOP,
                fix="train inside `with experts.step():`, and evaluate under torch.no_grad()",
            )

    def enter_forward(self) -> bool:
        """A differentiable pass reaches the first MoE layer; whether it is the step's last."""
        if self._forward > self._backward:
            raise UsageError(
                "a forward pass begins while the backward pass of the one before is outstanding",
                got=f"{self._forward} forward and {self._backward} backward passes of this step",
                expected="each micro-batch to go forward and backward before the next",
                fix="call loss.backward() after each forward pass, and evaluate under "
                "torch.no_grad()",
            )
        if self._forward == self._announced:
            raise UsageError(
                "a step has more micro-batches than it announced",
                got=f"forward pass {self._forward + 1} of {self._announced}",
                fix="pass micro_batches=k to experts.step, or end the step first",
            )
        self._forward += 1
        return self._forward == self._announced

    def require_running(self, layer: str) -> None:
        """A backward pass reaches ``layer``."""
        if self.stage is not Stage.RUNNING:
            raise UsageError(
                f"a backward pass reaches {layer} outside a step",
                got=f"loss.backward() {self.stage.value}",
                expected=_LOOP,
                fix="call loss.backward() inside `with experts.step():`",
            )

    def leave_backward(self) -> None:
        """A backward pass has left the first MoE layer."""
        self._backward += 1

    def finish(self) -> None:
        if self.stage is not Stage.RUNNING:
            raise UsageError(
                "finish_backward ends the backward passes of a step, and none is under way",
                got=f"finish_backward {self.stage.value}",
                expected=_LOOP,
            )
        if self._backward < self._announced:
            raise UsageError(
                "a step has fewer micro-batches than it announced",
                got=f"{self._backward} backward passes of {self._announced}",
                fix="pass their number as micro_batches to experts.step",
            )
        self.stage = Stage.REDUCED

    def end(self) -> None:
        if self.stage is not Stage.REDUCED:
            raise UsageError(
                "end_step comes after the backward passes of a step and optimizer.step()",
                got=f"end_step {self.stage.value}",
                expected=_LOOP,
            )
        self.stage = Stage.RESTING
