"""The engine: streams that compute, streams that transfer, links that transfers share. Pure.

Work is given in the order in which a program issues it. Each rank has a clock, the time at which
its compute stream is free. A transfer starts when its last rank has issued it and its stream is
free, takes ``launch_s``, and then drains over each class of link; transfers that use a class at the
same time share it evenly. See Note [Why the order of issue is enough].
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Seconds = npt.NDArray[np.float64]

# Note [Why the order of issue is enough]
# ---------------------------------------
# All ranks take part in every transfer, so that a transfer issued now starts no earlier than the
# latest of all clocks, and nothing placed on a compute stream so far lies after it. Until then the
# links are driven from event to event (a launch over, a class of link drained, a transfer begun);
# what is issued later changes nothing before. Only unfinished transfers slow down, and nobody has
# waited for those.
_TINY_S = 1e-15


@dataclass(frozen=True)
class Work:
    """One transfer with all links to itself: ``launch_s``, then seconds of each class of link.

    ``inside_s``: of the busiest rank's link within its node. ``across_s``: of the busiest link
    between nodes. Both drain at once; the longer one counts.
    """

    launch_s: float
    inside_s: float = 0.0
    across_s: float = 0.0

    @property
    def alone_s(self) -> float:
        """Seconds that it takes when nothing else is on the links."""
        return self.launch_s + max(self.inside_s, self.across_s)


@dataclass(eq=False)
class Transfer:
    """A transfer under way. ``started_s`` and ``ended_s`` are not numbers until they are known."""

    name: str
    stream: str
    issued_s: float
    left: list[float]  # launch, inside, across
    started_s: float = math.nan
    ended_s: float = math.nan

    @property
    def done(self) -> bool:
        return not math.isnan(self.ended_s)


@dataclass(frozen=True)
class Span:
    """What one stream did from when to when; on compute streams of the rank that ends last."""

    name: str
    stream: str
    start_s: float
    end_s: float


@dataclass
class Timeline:
    """The clocks of ``world_size`` ranks, and the transfers that they have issued.

    ``steal``: the part of every rank's compute that a transfer takes while it drains, 0 where links
    move bytes by themselves, near 1 where the rank's own core must. ``charged_s``: for each name,
    the mean over ranks of the seconds that it cost the compute streams; together the mean clock.
    """

    world_size: int
    steal: float = 0.0
    charged_s: dict[str, float] = field(default_factory=dict)
    spans: list[Span] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.clock_W: Seconds = np.zeros(self.world_size)
        self._now_s = 0.0  # how far the links have been driven, never beyond the latest clock
        self._queues: dict[str, deque[Transfer]] = {}
        self._busy: list[tuple[float, float]] = []  # when transfers stole from compute

    @property
    def end_s(self) -> float:
        """When the last rank is free."""
        return float(self.clock_W.max())

    def compute(self, name: str, seconds: float | Seconds) -> None:
        """Keep every rank busy for so long: one number, or one for each rank."""
        before_W = self.clock_W
        work_W = np.broadcast_to(np.asarray(seconds, dtype=np.float64), before_W.shape)
        if self.steal:
            self.clock_W = self._slowed(before_W, work_W)
        else:
            self.clock_W = before_W + work_W
        last = int(self.clock_W.argmax())
        self._charge(name, before_W)
        self.spans.append(Span(name, "compute", float(before_W[last]), float(self.clock_W[last])))

    def issue(self, name: str, stream: str, work: Work) -> Transfer:
        """Start a transfer when all ranks are here and those before it on ``stream`` are over."""
        self._drive(self.end_s)
        transfer = Transfer(name, stream, self.end_s, [work.launch_s, work.inside_s, work.across_s])
        self._queues.setdefault(stream, deque()).append(transfer)
        return transfer

    def wait(self, transfer: Transfer, *, name: str = "") -> None:
        """Let every rank wait until ``transfer`` is over.

        What a rank waits for others that have not issued it yet is charged to ``straggler``.
        """
        while not transfer.done:
            self._step(math.inf)
        before_W = self.clock_W
        arrived_W = np.maximum(before_W, min(transfer.issued_s, transfer.ended_s))
        self.clock_W = arrived_W
        self._charge("straggler", before_W)
        self.clock_W = np.maximum(arrived_W, transfer.ended_s)
        self._charge(name or transfer.name, arrived_W)

    def _charge(self, name: str, before_W: Seconds) -> None:
        spent_s = float((self.clock_W - before_W).mean())
        self.charged_s[name] = self.charged_s.get(name, 0.0) + spent_s

    def _heads(self) -> list[Transfer]:
        heads = [queue[0] for queue in self._queues.values() if queue]
        for transfer in heads:
            if math.isnan(transfer.started_s):
                transfer.started_s = self._now_s
        return heads

    def _drive(self, until_s: float) -> None:
        """Let transfers go on until then."""
        while self._now_s < until_s:
            self._step(until_s)

    def _step(self, until_s: float) -> None:
        """Go to the next event of any transfer, or to ``until_s``."""
        heads = self._heads()
        if not heads:
            self._now_s = until_s
            return
        draining = [transfer for transfer in heads if transfer.left[0] <= _TINY_S]
        sharers = [sum(t.left[link] > _TINY_S for t in draining) for link in (1, 2)]
        waits = [t.left[0] for t in heads if t.left[0] > _TINY_S]
        waits += [
            t.left[link] * sharers[link - 1]
            for t in draining
            for link in (1, 2)
            if t.left[link] > _TINY_S
        ]
        waits += [0.0 for t in heads if all(left <= _TINY_S for left in t.left)]
        passed_s = min([until_s - self._now_s, *waits])
        if self.steal and any(sharers):
            self._busy.append((self._now_s, self._now_s + passed_s))
        self._now_s += passed_s
        for transfer in heads:
            if transfer not in draining:
                transfer.left[0] -= passed_s
                continue
            for link in (1, 2):
                if transfer.left[link] > _TINY_S:
                    transfer.left[link] -= passed_s / sharers[link - 1]
        for transfer in heads:
            if all(left <= _TINY_S for left in transfer.left):
                self._finish(transfer)

    def _finish(self, transfer: Transfer) -> None:
        transfer.ended_s = self._now_s
        self._queues[transfer.stream].popleft()
        self.spans.append(
            Span(transfer.name, transfer.stream, transfer.started_s, transfer.ended_s)
        )

    def _slowed(self, clock_W: Seconds, work_W: Seconds) -> Seconds:
        """When each rank has done its work, if transfers steal from it meanwhile."""
        keeps = 1.0 - self.steal
        first_s = float(clock_W.min())
        self._busy = [part for part in self._busy if part[1] > first_s]
        ends = []
        for clock_s, work_s in zip(clock_W.tolist(), work_W.tolist(), strict=True):
            ends.append(self._end_of(clock_s, work_s, keeps))
        return np.array(ends)

    def _end_of(self, clock_s: float, work_s: float, keeps: float) -> float:
        place = 0
        while True:
            while place < len(self._busy):
                start_s, end_s = self._busy[place]
                place += 1
                idle_s = max(0.0, start_s - clock_s)
                if work_s <= idle_s:
                    return clock_s + work_s
                work_s -= idle_s
                clock_s += idle_s
                done = max(0.0, end_s - clock_s) * keeps
                if work_s <= done:
                    return clock_s + work_s / keeps
                work_s -= done
                clock_s = max(clock_s, end_s)
            if self._now_s >= clock_s + work_s or not self._heads():
                return clock_s + work_s
            # at full speed until the next event; more may be stolen by then
            self._step(max(self._now_s, clock_s) + work_s)
