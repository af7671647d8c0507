"""Traces as columns of numbers: little memory, and all of a class's at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serving.scheduling.applications.traces import Call, Kind, Trace, UnitRun

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

KINDS = tuple(Kind)
_MOST = np.iinfo(np.int32).max


@dataclass(frozen=True, eq=False)
class Packed:
    """One trace. ``codes``: of each run its unit's number, its kind's, whether it failed, and how
    many calls it had, ``[R, 4]`` int32; ``times``: when it began and how long it took, ``[R, 2]``;
    ``tokens``: of each call prompt, output and cached ones, ``[C, 3]`` int32."""

    codes: NDArray[np.int32]
    times: Floats
    tokens: NDArray[np.int32]

    @property
    def size_bytes(self) -> int:
        # An array costs about 120 bytes beside what is in it.
        return self.codes.nbytes + self.times.nbytes + self.tokens.nbytes + 480


def pack(trace: Trace, number: Callable[[str], int]) -> Packed:
    """``number``: of a unit's name."""
    codes = [
        (number(run.unit), KINDS.index(run.kind), run.failed, len(run.calls)) for run in trace.runs
    ]
    times = []
    ended_s = 0.0
    for run in trace.runs:
        began_s = run.began_s if run.began_s >= 0 else ended_s
        ended_s = max(ended_s, began_s + run.seconds)
        times.append((began_s, run.seconds))
    tokens = [
        (call.prompt_tokens, call.output_tokens, call.cached_tokens)
        for run in trace.runs
        for call in run.calls
    ]
    return Packed(
        np.array(codes, dtype=np.int32).reshape(-1, 4),
        np.array(times, dtype=np.float64).reshape(-1, 2),
        np.minimum(np.array(tokens, dtype=np.int64), _MOST).astype(np.int32).reshape(-1, 3),
    )


def unpack(packed: Packed, names: Sequence[str]) -> Trace:
    runs = []
    at = 0
    for (unit, kind, failed, calls), (began_s, seconds) in zip(
        packed.codes.tolist(), packed.times.tolist(), strict=True
    ):
        shown = tuple(Call(*call) for call in packed.tokens[at : at + calls].tolist())
        runs.append(UnitRun(names[unit], KINDS[kind], shown, seconds, bool(failed), began_s))
        at += calls
    return Trace(tuple(runs))


@dataclass(frozen=True, eq=False)
class Columns:
    """``T`` traces of ``R`` runs with ``C`` calls: runs ``trace_at[t]`` to ``trace_at[t + 1]`` are
    of trace ``t``, which is ``trace[r]``; call ``c`` is of run ``run[c]``. Units by their number,
    kinds by theirs in ``KINDS``."""

    trace_at: Ints
    trace: Ints
    unit: Ints
    kind: Ints
    failed: NDArray[np.bool_]
    calls: Ints
    began_s: Floats
    seconds: Floats
    run: Ints
    prompt: Floats
    output: Floats
    fresh: Floats


def columns(traces: Sequence[Packed]) -> Columns:
    none = Packed(np.zeros((0, 4), np.int32), np.zeros((0, 2)), np.zeros((0, 3), np.int32))
    pieces = [none, *traces]
    codes = np.concatenate([piece.codes for piece in pieces]).astype(np.int64)
    times = np.concatenate([piece.times for piece in pieces])
    tokens = np.concatenate([piece.tokens for piece in pieces]).astype(np.float64)
    runs = np.array([len(piece.codes) for piece in pieces], dtype=np.int64)
    return Columns(
        trace_at=np.cumsum(runs),
        trace=np.repeat(np.arange(len(traces)), runs[1:]),
        unit=codes[:, 0],
        kind=codes[:, 1],
        failed=codes[:, 2] > 0,
        calls=codes[:, 3],
        began_s=times[:, 0],
        seconds=times[:, 1],
        run=np.repeat(np.arange(len(codes)), codes[:, 3]),
        prompt=tokens[:, 0],
        output=tokens[:, 1],
        fresh=tokens[:, 0] - tokens[:, 2],
    )
