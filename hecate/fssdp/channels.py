"""The two channels of the sparse collectives, and which transport serves them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from collectives.calibration import TransportChooser, calibrate
from collectives.schedule import Change
from collectives.topology import Link, Topology
from collectives.transports import TRANSPORTS, LaunchResources, Transport
from hecate.fssdp.layer_plan import Channel
from hecate.fssdp.remembered import machine_digest
from hecate.mesh import ParallelContext

AUTO = "auto"


def open_channels(
    ctx: ParallelContext, transport: str, folder: Path
) -> tuple[Channel, Channel, Topology]:
    """For gathers, for reductions, and who is how far from whom; collective over all ranks.

    ``auto`` takes for each launch the transport that should be fastest by a short measurement,
    which ``folder`` remembers; any other name of ``TRANSPORTS`` always that one.
    """
    ones = Link(1.0, 0.0)  # schedules depend on who shares a node, not on how fast the links are
    topology = Topology(ctx.node_of_rank, inside=ones, across=ones)
    if transport != AUTO or ctx.world_size == 1:
        name = "p2p" if transport == AUTO else transport
        picks = [always(TRANSPORTS[name](LaunchResources())) for _ in range(2)]
    else:
        digest = machine_digest(ctx, "links")
        calibration = calibrate(
            folder / f"links-{digest}.json",
            ctx.groups.gather,
            ctx.rank,
            ctx.node_of_rank,
            machine=digest,
            device=ctx.device,
        )
        topology = calibration.topology(ctx.node_of_rank)
        picks = [TransportChooser(calibration.costs, topology).pick for _ in range(2)]
    gathers, reductions = picks
    return Channel(ctx.groups.gather, gathers), Channel(ctx.groups.reduce, reductions), topology


def always(transport: Transport) -> Callable[[Sequence[Change]], Transport]:
    """A pick that is the same for every change."""
    return lambda changes: transport


def carried_by(channel: Channel, wrap: Callable[[Transport], Transport]) -> Channel:
    """The same channel, with ``wrap`` around every transport that it picks."""
    return Channel(channel.group, lambda changes: wrap(channel.pick(changes)))
