"""Marks of tests that need GPUs; NCCL gives each rank one of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch


def gpus(count: int) -> list[pytest.MarkDecorator]:
    """For tests that need ``count`` of them: marks for ``pytest.param`` or ``pytestmark``."""
    found = torch.cuda.device_count()
    too_few = pytest.mark.skipif(found < count, reason=f"needs {count} GPUs, {found} are here")
    return [pytest.mark.gpu, too_few]


@contextmanager
def no_host_wait() -> Iterator[None]:
    """Whatever would make the host wait for the GPU in here is an error."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
