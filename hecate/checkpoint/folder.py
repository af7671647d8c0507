"""The folder of checkpoints: their names, which is newest, and how one appears and goes.

A checkpoint is written into ``.step-00000100.partial`` and renamed to ``step-00000100`` when it
is whole; an old one is renamed back to such a name before it is deleted. So whatever bears a
``step-`` name was complete once, and whatever bears a ``.partial`` name may go at any time.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from hecate.checkpoint.stages import Reached, Stage, unnoticed
from hecate.errors import CheckpointError

_STEP = re.compile(r"step-(\d{8,})")
_PARTIAL = re.compile(r"\.step-\d{8,}\.partial")


def step_folder(folder: Path, step: int) -> Path:
    """Where the checkpoint of ``step`` stands when it is whole."""
    return folder / f"step-{step:08d}"


def partial_folder(folder: Path, step: int) -> Path:
    """Where the checkpoint of ``step`` is written."""
    return folder / f".step-{step:08d}.partial"


def step_of(name: str) -> int | None:
    """The step that a folder of this name is the checkpoint of, if it is one's name."""
    match = _STEP.fullmatch(name)
    return int(match[1]) if match else None


def saved_steps(folder: Path) -> dict[int, Path]:
    """The checkpoints in ``folder`` by step, oldest first; none where there is no such folder."""
    if not folder.is_dir():
        return {}
    found = {}
    for path in folder.iterdir():
        step = step_of(path.name)
        if step is not None and path.is_dir():
            found[step] = path
    return dict(sorted(found.items()))


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the highest step, without opening it; ``None`` where there is none."""
    steps = saved_steps(folder)
    return steps[max(steps)] if steps else None


def refuse_later(folder: Path, step: int) -> None:
    """Raise ``CheckpointError`` when ``folder`` has checkpoints later than ``step``.

    A run that went back would else mix two histories: the newest by step would be the old one's.
    """
    later = [path.name for saved, path in saved_steps(folder).items() if saved > step]
    if later:
        raise CheckpointError(
            f"{folder} has checkpoints later than step {step}",
            got=", ".join(later),
            expected="a run to continue from its newest checkpoint",
            fix="give the run another name to branch off here, or move the later ones away",
        )


def open_folder(folder: Path) -> None:
    """Make ``folder`` and delete what a killed job left unfinished.

    Leaves a probe that shows that the folder can be written and, to the other ranks, that it is
    the same one; ``close_probe`` takes it away.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if _PARTIAL.fullmatch(path.name):
            shutil.rmtree(path)
    _probe(folder).mkdir()


def require_shared(folder: Path, rank: int) -> None:
    """Raise ``CheckpointError`` unless ``rank`` sees the probe that rank 0 left in ``folder``."""
    if not _probe(folder).is_dir():
        raise CheckpointError(
            f"rank {rank} does not see the checkpoint folder that rank 0 made",
            got=f"{folder} of its own machine",
            expected="one folder for all ranks",
            fix="put the run folder on a file system that all machines of the job share",
        )


def close_probe(folder: Path) -> None:
    """Take the probe of ``open_folder`` away."""
    _probe(folder).rmdir()


def _probe(folder: Path) -> Path:
    return partial_folder(folder, 0)


def publish(partial: Path, final: Path) -> None:
    """Give a written checkpoint its name, on the disk and not only in its cache."""
    sync_folder(partial)
    partial.rename(final)
    sync_folder(final.parent)


def keep_newest(folder: Path, keep: int, reached: Reached = unnoticed) -> None:
    """Delete all but the ``keep`` newest checkpoints; 0 keeps all."""
    steps = saved_steps(folder)
    for step in list(steps)[: max(0, len(steps) - keep)] if keep else []:
        doomed = partial_folder(folder, step)
        steps[step].rename(doomed)
        reached(Stage.OUTDATED)
        shutil.rmtree(doomed)


def sync_folder(folder: Path) -> None:
    """Write the names in ``folder`` through to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
