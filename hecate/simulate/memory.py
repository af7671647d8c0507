"""Memory of one device: owned parameters, copies, activations (2502.02581, section 3.2). Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hecate.simulate.workload import WorkloadConfig

# Bytes of one layer's activations for a token: 34 per hidden value and 5 per score that is stored
# (2205.05198, in mixed precision); where layers run again only their input is kept.
HIDDEN_BYTES = 34
SCORE_BYTES = 5
INPUT_BYTES = 2


@dataclass(frozen=True)
class Memory:
    """Bytes on the fullest device.

    ``owned``: parameters, gradients and optimizer state that it owns, dense ones included.
    ``copied_parameters``, ``copied_gradients``: of experts that it does not own.
    """

    owned_bytes: float
    copied_parameter_bytes: float
    copied_gradient_bytes: float
    activation_bytes: float

    @property
    def model_bytes(self) -> float:
        """Optimizer, gradient and parameter memory, which is what the paper reports."""
        return self.owned_bytes + self.copied_parameter_bytes + self.copied_gradient_bytes

    @property
    def total_bytes(self) -> float:
        return self.model_bytes + self.activation_bytes


def memory_of(
    workload: WorkloadConfig,
    *,
    owned_experts: float,
    copies_Y: Sequence[float],
    rematerialize: bool,
    activation_bytes: float,
    devices: int = 1,
) -> Memory:
    """One of ``devices``, which owns ``owned_experts`` over all layers and holds ``copies_Y``.

    Without ``rematerialize`` the copies of all layers are kept from forward to backward, and the
    gradients of one layer's; with it, parameters and gradients of one layer's.
    """
    most = max(copies_Y, default=0)
    kept = most if rematerialize else sum(copies_Y)
    expert = workload.expert_parameters
    return Memory(
        owned_bytes=owned_experts * _expert_bytes(workload, devices)
        + _dense_bytes(workload, devices),
        copied_parameter_bytes=kept * expert * workload.parameter_bytes,
        copied_gradient_bytes=most * expert * workload.gradient_bytes,
        activation_bytes=activation_bytes,
    )


def _expert_bytes(workload: WorkloadConfig, devices: int) -> float:
    """What an owner keeps of one expert."""
    groups = workload.num_groups(devices) if workload.sharded else 1
    each_bytes = workload.parameter_bytes + workload.gradient_bytes
    return workload.expert_parameters * (each_bytes + workload.state_bytes / groups)


def _dense_bytes(workload: WorkloadConfig, devices: int) -> float:
    """What a device keeps of all that is dense; sharded, its largest layer whole besides."""
    whole_bytes = workload.whole_dense_parameters * workload.owned_bytes_per_parameter
    if not workload.sharded:
        return whole_bytes
    largest = max(
        workload.dense_parameters, workload.dense_layer_parameters, workload.head_parameters
    )
    gathered = largest * (workload.parameter_bytes + workload.gradient_bytes)
    return whole_bytes / devices + gathered


def activation_bytes(
    workload: WorkloadConfig, *, busiest_over_mean: float, stored_scores: bool
) -> float:
    """What a forward pass leaves for the backward pass on the rank that computes most slots.

    Beside its own tokens' layers a rank keeps, of each row that it computes, input, hidden values
    and output, which is about four hidden states at these experts' widths.
    """
    layers = workload.layers + workload.dense_layers
    hidden = workload.hidden_size
    per_token = float(HIDDEN_BYTES * hidden)
    if stored_scores:
        per_token += SCORE_BYTES * workload.heads * workload.sequence_tokens
    rows = workload.slots * busiest_over_mean * 4 * hidden * workload.parameter_bytes
    whole = workload.tokens * per_token + rows
    if not workload.recompute:
        return layers * whole
    return layers * workload.tokens * hidden * INPUT_BYTES + whole


def slots_in_memory(
    free_bytes: float, workload: WorkloadConfig, *, rematerialize: bool, spare: float = 0.9
) -> int:
    """The paper's *m*: copies of each layer that ``spare`` of the free memory holds."""
    layers = 1 if rematerialize else workload.layers
    per_copy = layers * workload.parameter_bytes + workload.gradient_bytes
    return max(0, int(spare * free_bytes / (workload.expert_parameters * per_copy)))
