"""Records chosen steps of a run with ``torch.profiler``, their phases named, and sums them up."""

from __future__ import annotations

import gzip
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch._C._profiler import _ExperimentalConfig
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.hooks import RemovableHandle

from collectives.transports import Transport
from hecate.errors import StorageError
from hecate.files import write_text
from hecate.fssdp import ShardedExperts
from hecate.mesh import ParallelContext, naming
from hecate.train.profile.config import ProfileConfig
from hecate.train.profile.overlap import GATHER, REDUCE
from hecate.train.profile.summary import RankProfile, as_record, as_table, profile_of
from hecate.train.profile.trace import LAYER, PHASE, STEP
from hecate.train.profile.watched import WatchedTransport

_LOG = logging.getLogger(__name__)

FOLDER, SUMMARY = "profile", "summary.json"
Phase = Callable[[str], AbstractContextManager[object]]
Say = Callable[[str], object]


class Recorder:
    """Of one rank; ``phase``, ``gathers`` and ``reductions`` go into the trainer as it is built.

    Where ``config`` records nothing, all of them leave things as they are.
    """

    def __init__(
        self, config: ProfileConfig, ctx: ParallelContext, folder: Path, phase: Phase, say: Say
    ) -> None:
        self._config, self._ctx, self._say = config, ctx, say
        self._folder, self._phase = folder / FOLDER, phase
        self._window = range(0)
        self._hooks: list[RemovableHandle] = []
        self._named: list[tuple[str, nn.Module]] = []
        self._profile: profile | None = None

    @property
    def recording(self) -> bool:
        return self._profile is not None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """The clock's phase, which a trace shows as well."""
        with record_function(PHASE + name) if self.recording else nullcontext(), self._phase(name):
            yield

    def gathers(self, transport: Transport) -> Transport:
        return self._watched(transport, GATHER)

    def reductions(self, transport: Transport) -> Transport:
        return self._watched(transport, REDUCE)

    def begin(self, experts: ShardedExperts, start: int) -> None:
        """Get to know what is recorded of a run that goes on after ``start`` steps."""
        if not self._config.enabled:
            return
        self._window = self._config.window(start)
        if start > self._window.start and self._ctx.rank == 0:
            _LOG.warning(
                "profile.first_step = %d lies before this start, after %d steps: nothing recorded",
                self._window.start + 1,
                start,
            )
        self._named = list(_named_modules(experts))

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around step ``number``, from 0, on every rank; collective with the last one recorded."""
        if number not in self._window:
            yield
            return
        if number == self._window.start and self._is_asked():
            self._start()
        with record_function(f"{STEP} {number + 1}") if self.recording else nullcontext():
            yield
        if number == self._window[-1]:
            self.finish()

    def finish(self) -> None:
        """End the recording where one was due, keep it, and say what it shows; collective."""
        if not self._window:
            return
        first, self._window = self._window.start, range(0)
        profiles: list[RankProfile | None] = [None] * self._ctx.world_size
        own = self._stop()
        with naming("the profiles of all ranks", self._ctx.rank):
            dist.all_gather_object(profiles, own, group=self._ctx.groups.control)
        record = as_record([one for one in profiles if one is not None], first)
        if self._ctx.rank != 0:
            return
        self._say(f"{as_table(record)}\ntraces for ui.perfetto.dev lie in {self._folder}")
        try:
            write_text(self._folder / SUMMARY, json.dumps(record, indent=1) + "\n")
        except StorageError as error:
            _LOG.warning("%s", error)

    def _is_asked(self) -> bool:
        return not self._config.ranks or self._ctx.rank in self._config.ranks

    def _watched(self, transport: Transport, kind: str) -> Transport:
        if not self._config.enabled:
            return transport
        return WatchedTransport(transport, kind, lambda: self.recording)

    def _start(self) -> None:
        config, activities = self._config, [ProfilerActivity.CPU]
        if self._ctx.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(
            activities=activities,
            record_shapes=config.shapes,
            profile_memory=config.memory,
            with_stack=config.stacks,
            # else what the threads do that watch collectives is missing
            experimental_config=_ExperimentalConfig(profile_all_threads=True),
        )
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it would announce itself on stderr
        for name, module in self._named:
            self._hooks += _naming_hooks(name, module)
        self._profile.start()

    def _stop(self) -> RankProfile | None:
        recorded, self._profile = self._profile, None
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        if recorded is None:
            return None
        if self._ctx.device.type == "cuda":
            torch.cuda.synchronize(self._ctx.device)
        recorded.stop()
        path = self._folder / f"rank{self._ctx.rank}.trace.json.gz"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            recorded.export_chrome_trace(str(path))
            with gzip.open(path, "rt", encoding="utf-8") as file:
                return profile_of(self._ctx.rank, json.load(file)["traceEvents"])
        except (OSError, ValueError) as error:  # no reason for training to end
            _LOG.warning("rank %d: the trace cannot be kept in %s: %s", self._ctx.rank, path, error)
            return None


def _named_modules(experts: ShardedExperts) -> Iterator[tuple[str, nn.Module]]:
    """What a trace names: blocks by number, and inside them attention, router and experts."""
    for number, block in enumerate(experts.blocks):
        yield f"{LAYER}{number}", block
        for _, module in block.named_children():
            if type(module).__name__.endswith("Attention"):
                yield f"{PHASE}attention", module
    for router in experts.routers:
        yield f"{PHASE}router", router.module
    for module in experts.modules:
        yield f"{PHASE}dispatch", module


def _naming_hooks(name: str, module: nn.Module) -> list[RemovableHandle]:
    """Put each forward pass of ``module`` into a span called ``name``."""
    open_spans: list[record_function] = []

    def enter(*_: object) -> None:
        open_spans.append(record_function(name))
        open_spans[-1].__enter__()

    def leave(*_: object) -> None:
        if open_spans:  # the pass under way when the recording began has none
            open_spans.pop().__exit__(None, None, None)

    return [
        module.register_forward_pre_hook(enter, prepend=True),
        module.register_forward_hook(leave, always_call=True),
    ]
