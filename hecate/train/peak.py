"""How fast this device multiplies matrices: the denominator of MFU, measured."""

from __future__ import annotations

import time

import torch

_SIDE = {"cpu": 1024, "cuda": 8192}


def measure_peak_flops(device: torch.device, dtype: torch.dtype, *, budget_s: float = 0.3) -> float:
    """Floating-point operations a second of the best square GEMM within about ``budget_s``.

    Uses the threads that the process has now, so that ranks sharing a machine measure what each
    of them gets if they measure at the same time.
    """
    side = _SIDE.get(device.type, 1024)
    a = torch.ones(side, side, device=device, dtype=dtype)
    b = torch.ones(side, side, device=device, dtype=dtype)
    out = torch.empty(side, side, device=device, dtype=dtype)
    with torch.no_grad():
        if _seconds_of_rows(a[:64], b, out[:64], device) * side / 64 > budget_s:
            # No fast kernel for this dtype here: a strip says as much as the whole.
            a, out = a[:64], out[:64]
        best, deadline = float("inf"), time.perf_counter() + budget_s
        while time.perf_counter() < deadline:
            best = min(best, _seconds_of_rows(a, b, out, device))
    return 2.0 * a.shape[0] * side * side / best


def _seconds_of_rows(
    a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, device: torch.device
) -> float:
    _wait(device)
    started = time.perf_counter()
    torch.mm(a, b, out=out)
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
