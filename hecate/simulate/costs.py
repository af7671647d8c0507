"""What everything in a step costs one rank: by data sheets here, by measurement elsewhere. Pure."""

from __future__ import annotations

from dataclasses import dataclass, fields

from hecate.simulate.cluster import ClusterConfig
from hecate.simulate.workload import WorkloadConfig

# Passes over a token's hidden state in a layer's forward pass, reads and writes: two norms, two
# residual additions, projections in and out of attention.
HIDDEN_PASSES = 16
# Over a layer's scores where they pass through memory: written, read and written by scaling and
# softmax and again by dropout, read for the values, and a mask.
SCORE_PASSES = 7
# Over a slot's row: gathered for sending, arranged by expert, and back, read and written.
ROW_PASSES = 8
# Kernels of one layer without its experts, and of one expert, in the forward pass.
LAYER_KERNELS = 25
EXPERT_KERNELS = 3
# Bytes that an optimizer step moves for each parameter: gradient, master, two moments, read and
# written, and the parameter.
OPTIMIZER_BYTES = 30


@dataclass(frozen=True)
class Costs:
    """Seconds on one rank, and bytes.

    ``layer_*``: one layer with all but its experts. ``slot_*``: one row through an expert;
    ``expert_*``: beside its rows, one expert that has any; ``expert_least_*``: an expert takes no
    less, whatever its rows. ``ends_s``: embeddings, head and loss, both passes; plain layers too.
    ``optimizer_s``: of everything dense, ``expert_optimizer_s``: of one owned expert.
    ``host_s``: a MoE layer's bookkeeping, each pass. ``row_bytes``: one row in the token exchange.
    """

    layer_forward_s: float
    layer_backward_s: float
    slot_forward_s: float
    slot_backward_s: float
    expert_forward_s: float
    expert_backward_s: float
    expert_least_s: float
    ends_s: float
    optimizer_s: float
    expert_optimizer_s: float
    host_s: float
    row_bytes: int
    gather_bytes: int
    reduce_bytes: int

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if not 0 <= value < float("inf"):
                raise ValueError(f"{each.name} is {value}; expected a finite number from 0 up")


def data_sheet_costs(cluster: ClusterConfig, workload: WorkloadConfig) -> Costs:
    """Arithmetic over reachable peak, bytes over reachable bandwidth, kernels over launches."""
    device = cluster.device
    flops_per_s = device.peak_flops * device.gemm_efficiency * cluster.efficiency
    bytes_per_s = device.memory_bytes_per_s * device.memory_efficiency * cluster.efficiency
    tokens, hidden = workload.tokens, workload.hidden_size
    keys = workload.sequence_tokens / (2 if workload.causal else 1)

    def layer_s(parameters: int) -> float:
        flops = 2.0 * tokens * (parameters + workload.attention_width * keys)
        moved = HIDDEN_PASSES * tokens * hidden * workload.parameter_bytes
        if not device.fused_attention:
            scores = tokens * workload.heads * workload.sequence_tokens
            moved += SCORE_PASSES * scores * workload.parameter_bytes
        return flops / flops_per_s + moved / bytes_per_s + LAYER_KERNELS * device.launch_s

    forward_s = layer_s(workload.dense_parameters)
    slot_flops_s = 2.0 * workload.expert_parameters / flops_per_s
    row_s = ROW_PASSES * hidden * workload.parameter_bytes / bytes_per_s
    plain_s = workload.dense_layers * layer_s(workload.dense_layer_parameters)
    head_s = 2.0 * tokens * workload.head_parameters / flops_per_s
    passes = 4 if workload.recompute else 3
    return Costs(
        layer_forward_s=forward_s,
        layer_backward_s=2 * forward_s,
        slot_forward_s=slot_flops_s + row_s,
        slot_backward_s=2 * slot_flops_s + row_s,
        expert_forward_s=EXPERT_KERNELS * device.launch_s,
        expert_backward_s=2 * EXPERT_KERNELS * device.launch_s,
        expert_least_s=workload.expert_parameters * workload.parameter_bytes / bytes_per_s,
        ends_s=passes * plain_s + 3 * head_s,
        optimizer_s=workload.whole_dense_parameters * OPTIMIZER_BYTES / bytes_per_s,
        expert_optimizer_s=workload.expert_parameters * OPTIMIZER_BYTES / bytes_per_s,
        host_s=device.host_s,
        row_bytes=hidden * workload.parameter_bytes,
        gather_bytes=workload.expert_parameters * workload.parameter_bytes,
        reduce_bytes=workload.expert_parameters * workload.gradient_bytes,
    )
