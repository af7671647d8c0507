"""Workloads: a model's shape, what a device computes in a step, and how its loads are spread."""

from __future__ import annotations

from pydantic import Field, model_validator

from hecate.config import Config


class LoadsConfig(Config):
    """How routers spread slots over experts; an assumption wherever no load was recorded.

    The expert in place k of a layer takes a share that falls as ``k ** -skew``, in an order of its
    own for each layer. Logarithms of shares wander: ``drift`` is their standard deviation around
    that, and ``memory_steps`` how long they remember.
    """

    skew: float = Field(default=0.5, ge=0)
    drift: float = Field(default=0.2, ge=0)
    memory_steps: float = Field(default=100.0, gt=0)


class WorkloadConfig(Config):
    """A transformer whose MoE layers are alike.

    ``layers`` MoE layers; ``experts`` in each, or ``experts_per_device`` times the devices (weak
    scaling). ``expert_parameters``: one expert. ``dense_parameters``: one layer without its routed
    experts. ``end_parameters``: embeddings and head; ``head_parameters`` of them are multiplied
    with every token. ``dense_layers``: layers without experts, of ``dense_layer_parameters`` each.
    ``attention_width``: heads x (query width + value width) of a layer. ``causal``: half of the
    scores are never computed.

    ``expert_ranks``: experts are spread over groups of at most so many devices, and groups are
    copies of one another; 0: over all devices. ``recompute``: layers are run again in the backward
    pass. ``sharded``: dense parameters, gradients and optimizer state are spread over all devices
    and gathered layer by layer, as this trainer has them; and what the optimizer keeps of experts,
    over the groups that are copies of one another. ``parameter_bytes``, ``gradient_bytes``,
    ``state_bytes``: of one parameter as it computes and travels, of its gradient, and of what the
    optimizer keeps.
    """

    name: str
    hidden_size: int = Field(gt=0)
    layers: int = Field(gt=0)
    experts: int = Field(default=0, ge=0)
    experts_per_device: int = Field(default=0, ge=0)
    top_k: int = Field(gt=0)
    expert_parameters: int = Field(gt=0)
    dense_parameters: int = Field(gt=0)
    dense_layers: int = Field(default=0, ge=0)
    dense_layer_parameters: int = Field(default=0, ge=0)
    end_parameters: int = Field(default=0, ge=0)
    head_parameters: int = Field(default=0, ge=0)
    attention_width: int = Field(gt=0)
    heads: int = Field(gt=0)
    causal: bool = True
    sequence_tokens: int = Field(gt=0)
    sequences_per_device: int = Field(gt=0)
    expert_ranks: int = Field(default=0, ge=0)
    recompute: bool = False
    sharded: bool = False
    parameter_bytes: int = Field(default=2, gt=0)
    gradient_bytes: int = Field(default=2, gt=0)
    state_bytes: int = Field(default=12, gt=0)
    loads: LoadsConfig = LoadsConfig()

    @model_validator(mode="after")
    def _one_number_of_experts(self) -> WorkloadConfig:
        if bool(self.experts) == bool(self.experts_per_device):
            raise ValueError("set exactly one of experts and experts_per_device")
        return self

    @property
    def tokens(self) -> int:
        """Of one device in one step."""
        return self.sequence_tokens * self.sequences_per_device

    @property
    def slots(self) -> int:
        """Choices of experts that one device's tokens make in a layer."""
        return self.tokens * self.top_k

    def num_experts(self, devices: int) -> int:
        return self.experts or self.experts_per_device * devices

    def group_size(self, devices: int) -> int:
        """Devices that share one copy of the experts."""
        return min(devices, self.expert_ranks or devices)

    @property
    def owned_bytes_per_parameter(self) -> int:
        """With its gradient and what the optimizer keeps of it."""
        return self.parameter_bytes + self.gradient_bytes + self.state_bytes

    def num_groups(self, devices: int) -> int:
        """Copies of the experts."""
        return devices // self.group_size(devices)

    @property
    def whole_dense_parameters(self) -> int:
        """Everything but the routed experts."""
        plain = self.dense_layers * self.dense_layer_parameters
        return self.layers * self.dense_parameters + plain + self.end_parameters
