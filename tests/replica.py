"""Processes beside the test's own that share weights with it; see ``holder``."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import torch
from holder import run, say
from served import served_model

from serving.engine.batch import Piece
from serving.engine.compiled import CompiledForward
from serving.engine.kernels.library import kernels
from serving.engine.loading import adopt
from serving.engine.panels import PanelMemory, Sharing
from serving.memory.kv import PagedKV

FAMILY = "qwen3_moe"


def forward_of(sharing: Sharing | None) -> CompiledForward:
    """The same toy in every process."""
    model = served_model(FAMILY).to(torch.bfloat16)
    kv = PagedKV(adopt(model), num_blocks=8, block_tokens=8, dtype=model.dtype, device=model.device)
    return CompiledForward(model, kv, positions=64, threads=1, sharing=sharing)


def logits_of(forward: CompiledForward) -> str:
    """A digest of a prompt's logits, and of those of two tokens after it."""
    pieces = [
        Piece(list(range(2, 22)), 0, (3, 1, 5)),
        *(Piece([7], n, (3, 1, 5)) for n in (20, 21)),
    ]
    bits = torch.cat([forward([piece], [0]) for piece in pieces]).numpy().tobytes()
    return hashlib.sha256(bits).hexdigest()


def mapping(address: int) -> dict[str, int]:
    """What the kernel says of the mapping that begins at ``address``, in KiB."""
    found: dict[str, int] = {}
    inside = False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        first, *rest = line.split()
        if not first.endswith(":"):
            inside = first.startswith(f"{address:x}-")
        elif inside and rest[-1] == "kB":
            found[first[:-1]] = int(rest[0])
    return found


def _serves(folder: Path) -> None:
    """Share weights; tell what came of it once asked."""
    forward = forward_of(Sharing("toy", folder))
    say([forward.weights.filled, logits_of(forward)])
    sys.stdin.readline()
    say(mapping(forward.weights.address))


def _packs_half(folder: Path) -> None:
    """Begin to pack, as ``forward_of`` would, and never end."""
    size = forward_of(None).weights.num_bytes
    with PanelMemory(kernels(), size, Sharing("toy", folder), torch.bfloat16) as memory:
        say(memory.filled)
        sys.stdin.readline()


if __name__ == "__main__":
    torch.set_num_threads(1)
    run({"serves": _serves, "packs_half": _packs_half})
