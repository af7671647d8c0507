"""What a run writes as it goes: its start, its figures, its router loads."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from hecate.fssdp.measure import measured_costs
from hecate.logging import OpenSink, Run, open_sinks
from hecate.mesh import ParallelContext
from hecate.planner.policies.protocol import Reckoning
from hecate.train.build import Trainer
from hecate.train.config import RunConfig
from hecate.train.loads import FILE, LoadsHeader, LoadsRecorder
from hecate.train.memory import resident_bytes
from hecate.train.starts import environment, record_start


@dataclass(frozen=True)
class Records:
    """Where figures go, and on rank 0 the router loads. ``sink_bytes``: what the sinks hold."""

    sinks: Sequence[OpenSink]
    loads: LoadsRecorder | None
    sink_bytes: int


@contextmanager
def open_records(
    config: RunConfig,
    ctx: ParallelContext,
    trainer: Trainer,
    folder: Path,
    first_step: int,
    origins: Mapping[str, str],
    console: Console,
    cause: str = "",
) -> Iterator[Records]:
    """Begin them from ``first_step`` on, and close them at the end; collective.

    ``cause``: why the run is taken up again, where a launcher does so by itself.
    """
    if ctx.rank == 0:
        record_start(
            folder,
            first_step,
            node_of_rank=ctx.node_of_rank,
            device=ctx.device,
            time_s=time.time(),
            cause=cause,
        )
    settings = {key: f"{value}" for key, value in origins.items()}
    run = Run(
        folder,
        config.name,
        config.train.steps,
        resumed_step=first_step,
        settings=config.model_dump(mode="json") | {"origins": settings},
        environment=environment(ctx.device) if ctx.rank == 0 else {},
        console=console,
    )
    with ExitStack() as stack:
        before_bytes = resident_bytes()
        sinks = open_sinks(config.logging, run, rank=ctx.rank)
        sink_bytes = resident_bytes() - before_bytes
        for sink in sinks:
            stack.callback(sink.close)
        header = _loads_header(config, trainer, ctx, first_step)
        loads = None
        if ctx.rank == 0 and config.logging.loads:
            loads = LoadsRecorder(folder / FILE, header)
            stack.callback(loads.close)
        yield Records(sinks, loads, sink_bytes)


def _loads_header(
    config: RunConfig, trainer: Trainer, ctx: ParallelContext, first_step: int
) -> LoadsHeader:
    """What a replay of the run needs; collective, since a policy that asks no costs left them
    unmeasured."""
    experts = trainer.experts
    shards, policy = experts.shards, experts.policy
    compute_dtype, dtype = shards[0].compute_dtype, shards[0].parameter.dtype
    costs = measured_costs(
        config.experts.costs,
        experts.modules[0],
        experts.layers[0] if shards[0].layer.layout.numel else trainer.layers[0],
        ctx,
        dtype=dtype,
        compute_dtype=compute_dtype,
        folder=experts.costs_folder,
    )
    return LoadsHeader(
        step=first_step,
        owners=tuple(own.owners for own in experts.owners),
        window=experts.loads.state(),
        gather_bytes=tuple(shard.gather_bytes for shard in shards),
        reduce_bytes=tuple(shard.reduce_bytes for shard in shards),
        costs=policy.costs if isinstance(policy, Reckoning) else costs.step,
        topology=costs.topology,
        experts=config.experts,
    )
