"""Clusters: what their devices and links can do, as data sheets and micro-benchmarks say."""

from __future__ import annotations

from pydantic import Field

from collectives.topology import Link, Topology
from hecate.config import Config


class DeviceConfig(Config):
    """One device.

    ``peak_flops``: of dense matrix products in the training dtype, by its data sheet;
    ``gemm_efficiency``: the share of it that large products reach in micro-benchmarks.
    ``memory_bytes_per_s``: by the data sheet; ``memory_efficiency``: the share that a copy reaches.
    ``fused_attention``: scores stay on the chip (FlashAttention); else they pass through memory.
    ``launch_s``: one kernel. ``host_s``: what a MoE layer costs beside kernels and transfers, each
    pass, such as waiting for counts.
    """

    peak_flops: float = Field(gt=0)
    gemm_efficiency: float = Field(gt=0, le=1)
    memory_bytes: float = Field(gt=0)
    memory_bytes_per_s: float = Field(gt=0)
    memory_efficiency: float = Field(default=0.8, gt=0, le=1)
    fused_attention: bool
    launch_s: float = Field(ge=0)
    host_s: float = Field(default=0.0, ge=0)


class LinkConfig(Config):
    """One class of link: bytes per second in one direction, as reached, and seconds to begin."""

    bytes_per_s: float = Field(gt=0)
    latency_s: float = Field(ge=0)


class ClusterConfig(Config):
    """Nodes of ``devices_per_node`` devices each.

    ``inside``: a device's link to its node. ``across``: a node's links to other nodes, all its
    network cards together; one device reaches ``1 / cards_per_node`` of it. ``efficiency``: the one
    factor that may be fitted, on the absolute step time of expert parallelism alone; every compute
    time is divided by it. ``sources``: where the numbers come from.
    """

    name: str
    sources: str
    devices_per_node: int = Field(gt=0)
    cards_per_node: int = Field(default=1, gt=0)
    device: DeviceConfig
    inside: LinkConfig
    across: LinkConfig
    efficiency: float = Field(default=1.0, gt=0)

    def topology(self, devices: int) -> Topology:
        """``devices`` ranks, node after node; the last node may be smaller."""
        inside = Link(self.inside.bytes_per_s, self.inside.latency_s)
        across = Link(self.across.bytes_per_s, self.across.latency_s)
        nodes = tuple(rank // self.devices_per_node for rank in range(devices))
        return Topology(nodes, inside=inside, across=across if max(nodes) else inside)
