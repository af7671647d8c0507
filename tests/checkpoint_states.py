"""A small state like a trainer's, with values that tell the step and the place of each element."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from hecate.checkpoint.names import dense_key, expert_key, optimizer_key, rng_key
from hecate.mesh import ParallelContext

LAYER = "model.layers.3.mlp.experts"
NUM_EXPERTS = 5
DENSE = {"uneven": (7, 3), "fewer_rows_than_ranks": (2, 4), "norm": (5,), "empty": (0, 3)}


def expected(key: str, shape: tuple[int, ...], step: int) -> Tensor:
    """What ``key`` holds after ``step``; no two keys or steps agree."""
    numel = torch.Size(shape).numel()
    start = sum(ord(letter) * (place + 1) for place, letter in enumerate(key)) + 0.25 * step
    return torch.arange(numel, dtype=torch.float64).reshape(shape) + start


def full_shapes() -> dict[str, tuple[int, ...]]:
    """Every key that any world saves, with its global shape."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in DENSE.items():
        shapes[dense_key(name)] = shape
        shapes[optimizer_key(dense_key(name), "exp_avg")] = shape
    for expert_id in range(NUM_EXPERTS):
        key = expert_key(LAYER, expert_id)
        shapes[key] = (11,)
        shapes[optimizer_key(key, "exp_avg_sq")] = (11,)
    shapes[dense_key("scalar")] = ()
    return shapes


def owner(expert_id: int, world_size: int, shift: int) -> int:
    """An owner map that ``shift`` turns into another one."""
    return (expert_id * 3 + shift) % world_size


def sharded(ctx: ParallelContext, value: Tensor) -> DTensor:
    """``value`` in rows over the ranks, as FSDP2 shards it; the last ranks may get none."""
    rows = value.chunk(ctx.world_size)
    local = rows[ctx.rank] if ctx.rank < len(rows) else value[:0]
    return DTensor.from_local(
        local.clone(), ctx.mesh, [Shard(0)], shape=value.shape, stride=value.stride()
    )


def state_after(ctx: ParallelContext, step: int, *, shift: int = 0) -> dict[str, Tensor]:
    """This rank's state: DTensors, replicated tensors, the experts it owns, its own RNG."""
    state: dict[str, Tensor] = {}
    for key, shape in full_shapes().items():
        value = expected(key, shape, step)
        if key.startswith("dense/scalar"):
            state[key] = value
        elif "expert/" in key:
            expert_id = int(key.removesuffix("/exp_avg_sq").rpartition("/")[2])
            if owner(expert_id, ctx.world_size, shift) == ctx.rank:
                # A row of a larger storage, as the experts of a layer lie in memory.
                state[key] = torch.stack([value, value + 0.5])[0]
        else:
            state[key] = sharded(ctx, value)
    state[rng_key(ctx.rank)] = torch.full((3,), ctx.rank, dtype=torch.uint8)
    return state


def blanked(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same keys, shapes and meshes with nothing of the values left."""
    return {key: torch.full_like(tensor, 77) for key, tensor in state.items()}


def assert_equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Bitwise equality of local pieces, key by key."""
    assert found.keys() == wanted.keys()
    for key, tensor in found.items():
        ours, theirs = tensor, wanted[key]
        if isinstance(ours, DTensor):
            ours, theirs = ours.to_local(), theirs.to_local()
        assert torch.equal(ours, theirs), key
