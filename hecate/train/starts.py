"""Where a run was begun and taken up again, and on what: ``starts.jsonl``, for ``hecate report``.

A line for each start that came as far as training::

    {"step": 100, "time_s": ..., "ranks": 2, "nodes": 1, "environment": {"python": "3.11.2", ...}}

``step``: how many steps the run had done; ``environment``: names and values for people, of rank 0.
Where a launcher took the run up again by itself, ``cause`` says why.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path

import psutil
import torch

from hecate.errors import StorageError
from hecate.files import replace

FILE = "starts.jsonl"
PACKAGES = (
    "hecate",
    "torch",
    "transformers",
    "numpy",
    "wandb",
    "tensorboard",
    "deepspeed",
    "ray",
)


def record_start(
    folder: Path,
    step: int,
    *,
    node_of_rank: tuple[int, ...],
    device: torch.device,
    time_s: float,
    cause: str = "",
) -> None:
    """Append this start to the file in ``folder``; that of a new run, of 0 steps, begins it anew.

    ``time_s``: Unix time. Raises ``StorageError``.
    """
    path = folder / FILE
    record = {
        "step": step,
        "time_s": round(time_s, 3),
        "ranks": len(node_of_rank),
        "nodes": len(set(node_of_rank)),
        **({"cause": cause} if cause else {}),
        "environment": environment(device),
    }
    line = json.dumps(record, separators=(",", ":")) + "\n"
    try:
        before = path.read_text(encoding="utf-8") if step and path.exists() else ""
        kept = before[: before.rfind("\n") + 1]  # without what a kill left unfinished
        replace(path, kept + line)
    except OSError as error:
        raise StorageError(
            f"the start of the run cannot be written to {path}",
            got=error.strerror or str(error),
            expected="a writable folder with free space",
            fix="free some space or set folder to another disk",
        ) from error


def environment(device: torch.device) -> Mapping[str, str]:
    """What this process runs on: device, cores, memory, system, versions, the folder's commit."""
    facts = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads of a rank": str(torch.get_num_threads()),
        "cores": str(psutil.cpu_count() or "unknown"),
        "memory": f"{psutil.virtual_memory().total / 2**30:.1f} GiB",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
    }
    for name in PACKAGES:
        try:
            facts[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    if torch.version.cuda:
        facts["CUDA"] = torch.version.cuda
    if commit := _commit(Path.cwd()):
        facts["commit"] = commit
    return facts


def _commit(folder: Path) -> str:
    """What git has checked out in ``folder``, and whether files differ from it; "" without git."""
    try:
        head, changes = (
            subprocess.run(
                ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10
            )
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "-uno"))
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    if head.returncode:
        return ""
    return head.stdout.strip() + (" with changes" if changes.stdout.strip() else "")
