"""How much memory copies of experts may take, before training needs it for something else."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import psutil
import torch
import torch.distributed as dist

from hecate.mesh import ParallelContext

SHARE = 0.5  # of what is free; activations and allocators get the rest
_CGROUP = Path("/sys/fs/cgroup")


def spare_bytes(ctx: ParallelContext) -> int:
    """``SHARE`` of what is free on the rank that has least; collective over all ranks."""
    if ctx.device.type == "cuda":
        free = torch.cuda.mem_get_info(ctx.device)[0]
        # what the allocator holds beyond the most that was ever in use is free as well
        free += torch.cuda.memory_reserved(ctx.device) - torch.cuda.max_memory_allocated(ctx.device)
    else:
        neighbours = Counter(ctx.node_of_rank)[ctx.node_of_rank[ctx.rank]]
        free = min(psutil.virtual_memory().available, _left_in_container()) // neighbours
    least = torch.tensor(int(SHARE * max(0, free)))
    dist.all_reduce(least, op=dist.ReduceOp.MIN, group=ctx.groups.control)
    return int(least)


def _left_in_container() -> int:
    """What the control group allows beyond what it uses; no bound where there is none."""
    try:
        most, used = (
            (_CGROUP / name).read_text(encoding="ascii").strip()
            for name in ("memory.max", "memory.current")
        )
        return int(most) - int(used)
    except (OSError, ValueError):  # no such file, or "max"
        return 1 << 62
