"""Which model the adapters of a checkpoint belong to: its weights are not in the checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hecate.errors import CheckpointError

_END_BYTES = 1 << 20


def base_identity(folder: Path) -> dict[str, str]:
    """File name -> size and digest of the first and last MiB, of every safetensors file.

    The first holds the names and places of all tensors; so much is read however large the model.
    """
    return {path.name: _identity(path) for path in sorted(folder.glob("*.safetensors"))}


def require_same_base(path: Path, meta: Mapping[str, Any], folder: Path) -> None:
    """Raise ``CheckpointError`` unless ``folder`` holds what the checkpoint at ``path`` adapts."""
    expected: dict[str, str] = meta.get("base") or {}
    found = base_identity(folder)
    if not expected or expected == found:
        return
    changed = sorted(n for n in {*expected, *found} if expected.get(n) != found.get(n))
    raise CheckpointError(
        f"the adapters of {path} belong to another model than {folder} holds",
        got=f"{', '.join(changed[:3])} missing or changed" if found else "no safetensors files",
        expected="the weights that the run was started from",
        fix="restore them, or set model.path to where they are",
    )


def _identity(path: Path) -> str:
    size = path.stat().st_size
    digest = hashlib.sha256()
    with path.open("rb") as file:
        digest.update(file.read(_END_BYTES))
        file.seek(max(0, size - _END_BYTES))
        digest.update(file.read(_END_BYTES))
    return f"{size}:{digest.hexdigest()[:32]}"
