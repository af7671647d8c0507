"""What a sink of metrics does, what it may assume, and the names that metrics have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, Self

from rich.console import Console

from hecate.logging.config import LoggingConfig

Value = float | Sequence[float] | Sequence[Sequence[float]]


@dataclass(frozen=True)
class Run:
    """What a sink needs to know of the run it belongs to.

    ``settings``: the configuration; ``environment``: what it runs on, names and values for people.

    ``resumed_step`` is the step of the checkpoint that the run continues from, 0 for a new run:
    a sink drops, or lets be overwritten, whatever an earlier process logged after it.

    ``console``: where the run says everything, since a line of progress that moves has to know of
    all that is printed above it.
    """

    folder: Path
    name: str
    total_steps: int
    resumed_step: int = 0
    settings: Mapping[str, object] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    console: Console = field(default_factory=Console)


class OpenSink(Protocol):
    """Where metrics go. Only rank 0 has sinks; none of them communicates with other ranks.

    A value is a number, one number for each MoE layer, or one for each layer and expert. Names that
    sinks know (all optional, others pass through):

        loss  perplexity  bits_per_byte  learning_rate  grad_norm  tokens_per_s  mfu  experts/mfu
        seconds/<phase>                                      per phase, since the last ``log``
        memory/{resident,peak_resident,device,peak_device}_bytes
        load/tokens_per_expert                               [layers][experts]
        load/{experts,ranks}_max_over_mean  load/dead_experts   [layers]
        load/computed_max_over_mean                          [layers], as ranks computed
        load/{idle_copies,missed_experts,straggler_wait_s}   [layers], since the last ``log``
        router/{entropy,dead_experts}                        [layers], likewise
        skipped_steps                                        by the guard, since the run began
        noise_scale_tokens                                   of gradients, where it can be told
        load/moved_experts  {gather,reduce}/bytes            all ranks, since the last ``log``
        gather/{exposed,hidden}_s                            [layers], mean of ranks, likewise
        eval/{loss,perplexity,bits_per_byte}                 after an evaluation
    """

    def log(self, step: int, values: Mapping[str, Value]) -> None:
        """Keep ``values`` of ``step``; steps never decrease, one step may be logged twice."""
        ...

    def close(self) -> None:
        """Write out what is pending; also after an error, and harmless when called twice."""
        ...


class Sink(OpenSink, Protocol):
    """A kind of sink, and how one is opened."""

    @classmethod
    def open(cls, config: LoggingConfig, run: Run) -> Self:
        """A sink that is ready to log; it opens files and starts threads here, not before."""
        ...
