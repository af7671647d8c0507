"""How much of each kind of communication computation hides, from a trace. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from hecate.train.profile.intervals import Interval, intersection, length, union
from hecate.train.profile.phases import Label, Timeline
from hecate.train.profile.trace import CARRY, GLOO, STEP, Span, Thread

GATHER, REDUCE = "sparse gather", "sparse reduce"
EXCHANGE, DENSE_GATHER, DENSE_REDUCE = "token exchange", "dense gather", "dense reduce"
AGREEMENT, OTHER = "sums and agreements", "other"
KINDS = (GATHER, REDUCE, EXCHANGE, DENSE_GATHER, DENSE_REDUCE, AGREEMENT, OTHER)

_OF_PHASE = {
    f"launch {GATHER}": GATHER,
    f"launch {REDUCE}": REDUCE,
    "all_to_all": EXCHANGE,
    "dense gather": DENSE_GATHER,
    "dense reduce": DENSE_REDUCE,
    "optimizer": AGREEMENT,
    "step": AGREEMENT,
    "data": AGREEMENT,
}


@dataclass(frozen=True)
class Overlap:
    """One kind of collective on one rank: how many, and seconds that some was under way.

    ``hidden_s``: of these, while the rank computed; the rest is exposed.
    """

    launches: int
    under_way_s: float
    hidden_s: float

    @property
    def exposed_s(self) -> float:
        return self.under_way_s - self.hidden_s

    @property
    def fraction(self) -> float:
        """Hidden of what was under way; 0 where nothing was."""
        return self.hidden_s / self.under_way_s if self.under_way_s > 0 else 0.0


def overlaps(spans: Sequence[Span], lines: Mapping[Thread, Timeline]) -> dict[str, Overlap]:
    """Of each kind that occurs in the recorded steps, in the order of ``KINDS``.

    Where the trace has kernels, computation is every kernel but NCCL's, and communication is
    NCCL's. Else computation is torch's operations on the threads of ``lines``, and a collective
    lasts from its launch until a gloo thread, or the thread that watches it, has seen its end.
    """
    steps = union(_times(span for span in spans if span.name.startswith(STEP)))
    kernels = [span for span in spans if span.is_kernel]
    if kernels:
        computing = union(_times(span for span in kernels if not _is_nccl(span)))
        under_way = _of_nccl([span for span in kernels if _is_nccl(span)], spans, lines)
    else:
        computing = union(
            _times(s for s in spans if s.thread in lines and s.name.startswith("aten::"))
        )
        under_way = _of_gloo(spans, lines)
    found = {}
    for kind in KINDS:
        if kind in under_way:
            moving = intersection(union(under_way[kind]), steps)
            hidden = intersection(moving, computing)
            found[kind] = Overlap(len(under_way[kind]), length(moving) / 1e6, length(hidden) / 1e6)
    return found


def _times(spans: Iterable[Span]) -> list[Interval]:
    return [(span.start, span.end) for span in spans]


def _is_nccl(span: Span) -> bool:
    return span.name.startswith("nccl")


def _of_nccl(
    kernels: Sequence[Span], spans: Sequence[Span], lines: Mapping[Thread, Timeline]
) -> dict[str, list[Interval]]:
    """Each kernel by what its launch was part of."""
    launches = {
        span.correlation: span
        for span in spans
        if span.correlation >= 0 and span.category in ("cuda_runtime", "cuda_driver")
    }
    found: dict[str, list[Interval]] = {}
    for kernel in kernels:
        launch = launches.get(kernel.correlation)
        if launch is None or launch.thread not in lines:
            continue
        kind = _kind(lines[launch.thread].at(launch.start), kernel.name)
        if kind:
            found.setdefault(kind, []).append((kernel.start, kernel.end))
    return found


def _of_gloo(spans: Sequence[Span], lines: Mapping[Thread, Timeline]) -> dict[str, list[Interval]]:
    """Sparse collectives by the threads that watch them, others from their launch to gloo's end.

    Gloo's span begins when one of its threads takes the collective up. It belongs to the last
    launch before of an operation that gloo carries out so.
    """
    found: dict[str, list[Interval]] = {}
    launched: list[Span] = []
    for span in spans:
        if span.name.startswith(CARRY):
            kind = span.name.removeprefix(CARRY).split(" of ")[0]
            found.setdefault(kind, []).append((span.start, span.end))
        elif span.name.startswith("c10d::"):
            launched.append(span)
        elif span.name.startswith(GLOO):
            by = next((one for one in reversed(launched) if _carries_out(span, one)), None)
            if by is None:
                continue
            launched.remove(by)
            label = lines[by.thread].at(by.start) if by.thread in lines else None
            if label is not None and not label.phase.startswith("launch "):
                found.setdefault(_kind(label, by.name), []).append((by.start, span.end))
    return found


def _carries_out(gloo: Span, launch: Span) -> bool:
    """Whether ``gloo:all_gather`` may be of ``c10d::_allgather_base_``, and so on."""
    done, asked = _letters(gloo.name.removeprefix(GLOO)), _letters(launch.name)
    return done in asked or (done == "allreduce" and "reducescatter" in asked)  # gloo has no other


def _letters(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalpha())


def _kind(label: Label | None, operation: str) -> str:
    """Of a collective launched under ``label``; "" outside of steps."""
    if label is None:
        return ""
    if label.phase in _OF_PHASE:
        return _OF_PHASE[label.phase]
    letters = _letters(operation)
    if "allgather" in letters:
        return DENSE_GATHER
    if "reduce" in letters:
        return DENSE_REDUCE
    return OTHER
