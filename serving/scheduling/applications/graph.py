"""What the instances of one class did: its probabilistic demand graph (2506.14851, section 3)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from serving.scheduling.applications.columns import (
    Columns,
    Floats,
    Ints,
    Packed,
    columns,
    pack,
    unpack,
)
from serving.scheduling.applications.conditioned import (
    OPENED,
    SO_FAR,
    Conditioned,
    Feature,
    Rest,
    Shown,
    features_of,
)
from serving.scheduling.applications.demand import Rates
from serving.scheduling.applications.drift import changed
from serving.scheduling.applications.live import Live
from serving.scheduling.applications.points import NONE, Points, points, signature
from serving.scheduling.applications.prospects import NOTHING, Prospect
from serving.scheduling.applications.traces import Kind, Trace, UnitRun

MOST_UNITS = 64
OTHER = "(other)"  # all further units of a class that has more
_UNKNOWN = -3
_RENEWED = 0.05  # of the traces: when so many are new, what was learned is learned anew
_WORD = 2**64 - 1


@dataclass(frozen=True, eq=False)
class _Learned:
    kept: Columns
    points: Points
    conditioned: Conditioned

    @property
    def starts(self) -> Ints:
        """The points before anything was shown, one of each trace."""
        return self.kept.trace_at[:-1] + np.arange(self.kept.trace_at.size - 1)


class PDGraph:
    """The newest ``window`` traces of a class, whole, and what was learned from them.

    What it learned is renewed once a twentieth of the traces are new. Then it looks too whether the
    class has changed what it does, and forgets what was before that.
    """

    def __init__(
        self, window: int, enough: int, most_bytes: int, rates: Callable[[], Rates]
    ) -> None:
        """``enough``: traces without which nothing is foretold; ``most_bytes``: of memory, at which
        the oldest go before there are ``window``."""
        self._enough = enough
        self._most_bytes = most_bytes
        self._rates = rates
        self._window = window
        self._traces: deque[Packed] = deque()
        self._names: list[str] = []
        self._numbers: dict[str, int] = {}
        self._learned: _Learned | None = None
        self._new = 0
        self.size_bytes = 0
        self.drifts = 0

    def __len__(self) -> int:
        return len(self._traces)

    @property
    def known(self) -> bool:
        """Whether there is enough to foretell from."""
        return len(self._traces) >= self._enough

    @property
    def units(self) -> tuple[str, ...]:
        """Names, by the numbers that ``packed`` has."""
        return tuple(self._names)

    @property
    def packed(self) -> tuple[Packed, ...]:
        return tuple(self._traces)

    @property
    def traces(self) -> tuple[Trace, ...]:
        return tuple(unpack(packed, self._names) for packed in self._traces)

    def add(self, trace: Trace) -> None:
        self._append(pack(trace, self._number))
        self._new += 1
        if self._new >= max(1.0, _RENEWED * len(self._traces)):
            self._learned = None
            if self.known:
                self._forget_what_was_before_a_change()

    def fill(self, units: Sequence[str], traces: Iterable[Packed]) -> None:
        """With what a graph of the class had before."""
        self._names = list(units)
        self._numbers = {name: number for number, name in enumerate(units)}
        for packed in traces:
            self._append(packed)
        self._learned = None

    @property
    def work_s(self) -> Floats:
        """Seconds of the device that whole instances had, the oldest first."""
        learned = self._current()
        return learned.points.work_s[learned.starts]

    def prospect(self, live: Live, least_s: float = 0.0) -> Prospect:
        """Of an instance of this class; ``least_s``: see ``Prospect``."""
        rest = self._rest(live)
        if rest is None:
            return Prospect(live.ended_s, NOTHING, NOTHING, least_s)
        return Prospect(live.ended_s, rest.work_s, rest.path_s, least_s)

    def _rest(self, live: Live) -> Rest | None:
        return self._current().conditioned.rest(self._shown(live)) if self.known else None

    def _current(self) -> _Learned:
        if self._learned is None:
            self._drop_unused_names()
            kept = columns(tuple(self._traces))
            found = points(kept, self._rates())
            self._learned = _Learned(kept, found, Conditioned(kept, found, self._enough))
            self._new = 0
        return self._learned

    def _forget_what_was_before_a_change(self) -> None:
        """Figures of an instance: its work, and how often each of its units ran."""
        learned = self._current()
        figures = np.zeros((len(self._traces), 1 + len(self._names)))
        figures[:, 0] = self.work_s
        np.add.at(figures, (learned.kept.trace, 1 + learned.kept.unit), 1.0)
        newest = changed(figures)
        if newest:
            self.drifts += 1
            while len(self._traces) > max(newest, self._enough):
                self.size_bytes -= self._traces.popleft().size_bytes
            self._learned = None

    def _append(self, packed: Packed) -> None:
        self._traces.append(packed)
        self.size_bytes += packed.size_bytes
        while len(self._traces) > self._window or (
            self.size_bytes > self._most_bytes and len(self._traces) > 1
        ):
            self.size_bytes -= self._traces.popleft().size_bytes

    def _number(self, unit: str) -> int:
        if unit not in self._numbers and len(self._names) >= MOST_UNITS - 1:
            unit = OTHER
        if unit not in self._numbers:
            self._numbers[unit] = len(self._names)
            self._names.append(unit)
        return self._numbers[unit]

    def _drop_unused_names(self) -> None:
        codes = [packed.codes[:, 0] for packed in self._traces]
        used = np.unique(np.concatenate(codes)) if codes else np.zeros(0, np.int32)
        if used.size == len(self._names):
            return
        new = np.zeros(len(self._names), dtype=np.int32)
        new[used] = np.arange(used.size)
        for at, packed in enumerate(self._traces):  # others may hold the old ones
            renamed = packed.codes.copy()
            renamed[:, 0] = new[renamed[:, 0]]
            self._traces[at] = replace(packed, codes=renamed)
        self._names = [self._names[each] for each in used]
        self._numbers = {name: number for number, name in enumerate(self._names)}

    def _shown(self, live: Live) -> Shown:
        numbers = self._numbers
        other = numbers.get(OTHER, _UNKNOWN)
        units = [numbers.get(run.unit, other) for run in live.runs]
        last = units[-1] if units else NONE
        features: dict[Feature, float] = {SO_FAR: float(np.log1p(live.ended_s))}
        latest = dict(zip(units, live.runs, strict=True))
        for unit, row in zip(latest, _features(latest.values()), strict=True):
            features.update(((unit, which), each) for which, each in enumerate(row))
        opened = frozenset(numbers.get(unit, other) for unit in live.open_units)
        if len(live.open_units) == 1:
            (only,) = live.open_units.values()
            prompts = [call.prompt_tokens for call in only.calls]
            prompts += [call.prompt_tokens for call in only.running.values()]
            if prompts:
                features[OPENED] = float(np.log1p(sum(prompts) / len(prompts)))
        total = sum(signature(unit) for unit in units) & _WORD
        return Shown(total, last, units.count(last), opened, features, live.ended_s)


def _features(runs: Collection[UnitRun]) -> list[list[float]]:
    prompts = [sum(call.prompt_tokens for call in run.calls) for run in runs]
    outputs = [sum(call.output_tokens for call in run.calls) for run in runs]
    calls = [len(run.calls) for run in runs]
    seconds = [0.0 if run.kind is Kind.LLM else run.seconds for run in runs]
    rows = np.array([prompts, outputs, calls, seconds], dtype=np.float64)
    found: list[list[float]] = features_of(*rows).tolist()
    return found
