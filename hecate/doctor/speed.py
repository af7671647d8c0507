"""Which dtypes are worth training in here: matrix multiplications at two sizes, timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from hecate.doctor.report import Row


@dataclass(frozen=True)
class Shape:
    """``rows`` tokens through weights of ``side`` x ``side``, whole or in ``experts`` groups."""

    name: str
    rows: int
    side: int
    experts: int = 8


SMALL = Shape("small", 1024, 256)
LARGE = Shape("large", 1024, 1024)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# (shape name, whether grouped) -> operations a second; 0 where the dtype is not supported
Speeds = Mapping[tuple[str, bool], float]

_ROUNDS = 3
_BUDGET_S = 0.05
_CLEARLY = 1.2
_DISTURBED = 4.0


def rows() -> list[Row]:
    """One row for each dtype, then which to choose.

    Several rounds over all dtypes, of which the best counts: what else the machine does comes in
    bursts, and should not fall on one dtype alone.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rounds = [
        {dtype: measure(device, dtype, budget_s=_BUDGET_S) for dtype in DTYPES}
        for _ in range(_ROUNDS)
    ]
    best = {dtype: fastest([one[dtype] for one in rounds]) for dtype in DTYPES}
    return [
        *(Row(f"speed in {_name(dtype)}", _show(speeds)) for dtype, speeds in best.items()),
        choice(
            best[torch.float32],
            best[torch.bfloat16],
            disturbed=any(disturbed([one[dtype] for one in rounds]) for dtype in DTYPES[:2]),
        ),
    ]


def fastest(rounds: Sequence[Speeds]) -> Speeds:
    """The best speed of each multiplication over the rounds."""
    return {key: max(one[key] for one in rounds) for key in rounds[0]}


def disturbed(rounds: Sequence[Speeds]) -> bool:
    """Whether the rounds differ by more than a quiet machine's would."""
    return any(
        max(one[key] for one in rounds) > _DISTURBED * min(one[key] for one in rounds)
        for key in rounds[0]
    )


def choice(float32: Speeds, bfloat16: Speeds, *, disturbed: bool) -> Row:
    """Which dtype to train in, by how bfloat16 compares with float32 at each size."""
    gains = {key: bfloat16[key] / float32[key] if float32[key] else 0.0 for key in float32}
    small, large = (min(gains[name, False], gains[name, True]) for name in ("small", "large"))
    ratios = f"{small:.1f}x at side {SMALL.side}, {large:.1f}x at side {LARGE.side}"
    if large < _CLEARLY:
        advice = f"float32: bfloat16 is not clearly faster ({ratios})"
    elif small < _CLEARLY:
        advice = f"bfloat16 only for large models ({ratios}); float32 for small ones"
    else:
        advice = f"bfloat16 ({ratios})"
    if disturbed:
        fix = "the measurements scatter: run this again when the machine is idle"
        return Row("train.dtype", advice, "warn", fix)
    return Row("train.dtype", advice)


def measure(device: torch.device, dtype: torch.dtype, *, budget_s: float) -> Speeds:
    """Speeds of plain and grouped multiplications at both sizes; about ``4 * budget_s`` long."""
    return {
        (shape.name, grouped): _speed(shape, grouped, device, dtype, budget_s)
        for shape in (SMALL, LARGE)
        for grouped in (False, True)
    }


def _speed(
    shape: Shape, grouped: bool, device: torch.device, dtype: torch.dtype, budget_s: float
) -> float:
    # A few rows first: a dtype without a fast kernel would take seconds for all of them.
    strip = 8 * shape.experts
    try:
        strip_s = _best(_multiplication(shape, strip, grouped, device, dtype), device, 0.01)
    except (RuntimeError, NotImplementedError):
        return 0.0
    flops_a_row = 2.0 * shape.side * shape.side
    if strip_s * shape.rows / strip > 5 * budget_s:
        return strip * flops_a_row / strip_s
    run = _multiplication(shape, shape.rows, grouped, device, dtype)
    return shape.rows * flops_a_row / _best(run, device, budget_s)


def _multiplication(
    shape: Shape, num_rows: int, grouped: bool, device: torch.device, dtype: torch.dtype
) -> Callable[[], object]:
    x_TD = torch.ones(num_rows, shape.side, device=device, dtype=dtype)
    if not grouped:
        w_DF = torch.ones(shape.side, shape.side, device=device, dtype=dtype)
        return lambda: x_TD @ w_DF
    w_EDF = torch.ones(shape.experts, shape.side, shape.side, device=device, dtype=dtype)
    share = num_rows // shape.experts
    ends_E = torch.arange(1, shape.experts + 1, device=device, dtype=torch.int32) * share
    return lambda: torch.nn.functional.grouped_mm(x_TD, w_EDF, offs=ends_E)


def _best(run: Callable[[], object], device: torch.device, budget_s: float) -> float:
    """The quickest of the calls that fit into ``budget_s``, two at least: the first prepares."""
    seconds: list[float] = []
    deadline = time.perf_counter() + budget_s
    while len(seconds) < 2 or time.perf_counter() < deadline:
        _wait(device)
        started = time.perf_counter()
        run()
        _wait(device)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _show(speeds: Speeds) -> str:
    parts = []
    for (name, grouped), flops in speeds.items():
        kind = "grouped" if grouped else "plain"
        parts.append(f"{name} {kind} {flops / 1e9:.0f}" if flops else f"{name} {kind} unsupported")
    return ", ".join(parts) + " GFLOP/s"
