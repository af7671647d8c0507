"""Small tensors of the host on their way to the device, for which the host does not wait."""

from __future__ import annotations

import torch


def upload(host: torch.Tensor, device: torch.device) -> torch.Tensor:
    """``host``, a CPU tensor, on ``device``; on a CPU the tensor itself.

    From pageable memory CUDA would hold the host up until the copy is over, and with it all that
    was queued before: the token exchange, the wait for a gather. From pinned memory it queues; the
    allocator keeps the pinned block until the copy has left it.
    """
    if device.type != "cuda":
        return host
    return host.pin_memory().to(device, non_blocking=True)
