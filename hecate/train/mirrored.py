"""A run and its mirror: fetched from where it has more, copied there as checkpoints appear."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist

from hecate.checkpoint.agreement import gather, together
from hecate.checkpoint.folder import saved_steps
from hecate.checkpoint.mirror import Mirror
from hecate.errors import CheckpointError, StorageError, UserError
from hecate.train.config import RunConfig
from hecate.train.notices import Say

LOOK_S = 1.0  # how often a thread looks for a checkpoint that has appeared
PATIENCE_S = 20.0  # other ranks hear at least so often that the first is still fetching
LINKS = ".mirror-{step:08d}"


def fetch_newest(
    config: RunConfig, folder: Path, resume: str, group: dist.ProcessGroup, say: Say
) -> None:
    """Bring the newest checkpoint into ``folder`` if the run's mirror has a newer one; collective.

    Only for ``resume`` auto. Raises ``StorageError`` if the mirror cannot be asked and ``folder``
    has none to go on from, and ``CheckpointError`` if a new run's mirror holds another run.
    """
    if not config.checkpoint.mirror:
        return
    what = f"fetching from {config.checkpoint.mirror}"
    future: Future[None] = Future()

    def fetch() -> None:
        try:
            _fetch(config, folder, resume, say)
            future.set_result(None)
        except Exception as error:
            future.set_exception(error)

    first = group.rank() == 0
    if first:
        threading.Thread(target=fetch, name="fetch", daemon=True).start()
    over = False
    while not over:  # no wait is longer than the group's timeout
        own = bool(wait([future], PATIENCE_S).done) if first else False
        over = gather(group, what, own)[0]
    with together(group, what):
        if first:
            future.result()


def _fetch(config: RunConfig, folder: Path, resume: str, say: Say) -> None:
    mirror = Mirror(config.checkpoint.mirror, config.name)
    own = max(saved_steps(folder / "checkpoints"), default=-1)
    try:
        if resume == "auto":
            fetched = mirror.fetch(folder, later_than=own)
            if fetched is not None:
                say(f"fetched {fetched.name} from {mirror.address}")
        elif resume == "none" and (steps := mirror.steps()):
            raise CheckpointError(
                f"{mirror.address} already holds checkpoints of a run",
                got=f"--resume none, and step {steps[-1]} there",
                expected="a new run with a mirror of its own",
                fix="pass --resume auto to continue it, choose another name (--set name=...), or "
                "remove that copy",
            )
    except StorageError as error:
        if resume == "auto" and own < 0:
            raise  # to start anew would be to throw away what may lie there
        say(f"going on without the mirror: {error}")


@contextmanager
def mirrored(config: RunConfig, folder: Path, rank: int, say: Say) -> Iterator[None]:
    """Copy each checkpoint that appears in ``folder`` inside; by one rank, in the background.

    Ends when the newest is copied. If an error comes through, a copy under way is given up with the
    file that it is at: this process may take the run up again, and copy once more.
    """
    if rank or not config.checkpoint.mirror:
        yield
        return
    mirror = Mirror(config.checkpoint.mirror, config.name)
    copier = Copier(mirror, folder, config.checkpoint.keep, say)
    over = threading.Event()
    thread = threading.Thread(target=copier.watch, args=(over,), name="mirror", daemon=True)
    thread.start()
    try:
        yield
    except BaseException:
        copier.give_up()
        over.set()
        thread.join()
        raise
    over.set()
    thread.join()
    copier.finish()


class Copier:
    """Copies the newest checkpoint of ``run`` whenever there is a new one.

    A failure is said once, until a copy succeeds again, and does not matter to anybody else.
    """

    def __init__(self, mirror: Mirror, run: Path, keep: int, say: Say) -> None:
        self._mirror, self._run, self._keep, self._say = mirror, run, keep, say
        self._copied = self._tried = -1
        self._told = self._given_up = False

    def give_up(self) -> None:
        """Copy nothing more."""
        self._given_up = True

    def watch(self, over: threading.Event) -> None:
        """Copy what appears until ``over``."""
        for stale in self._run.glob(LINKS.format(step=0).replace("00000000", "*")):
            shutil.rmtree(stale, ignore_errors=True)
        while not over.wait(LOOK_S):
            self.look()

    def look(self) -> None:
        """Copy the newest checkpoint if that was not tried yet."""
        newest = self._newest()
        if newest is not None and newest[0] > self._tried:
            self._copy(*newest)

    def finish(self) -> None:
        """Copy the newest checkpoint if it is not copied yet."""
        newest = self._newest()
        if newest is not None and newest[0] > self._copied:
            self._copy(*newest)

    def _newest(self) -> tuple[int, Path] | None:
        steps = saved_steps(self._run / "checkpoints")
        return max(steps.items(), default=None)

    def _copy(self, step: int, checkpoint: Path) -> None:
        self._tried = step
        links = self._run / LINKS.format(step=step)
        try:
            there = self._mirror.steps()
            if step not in there:
                self._refuse_later(step, there)
                source = _linked(checkpoint, links)
                self._mirror.put(self._run, source, step, lambda: not self._given_up)
                self._mirror.keep_newest(self._keep)
            self._copied, self._told = step, False
        except (UserError, OSError) as error:
            if not self._told:
                self._say(f"checkpoint {step} is here only: {error}")
            self._told = True
        finally:
            shutil.rmtree(links, ignore_errors=True)

    def _refuse_later(self, step: int, there: list[int]) -> None:
        if there and there[-1] > step:
            raise CheckpointError(
                f"{self._mirror.address} has checkpoints later than step {step}",
                got=f"step {there[-1]}",
                expected="a mirror of this run alone",
                fix="give the run another name, or move that copy away",
            )


def _linked(checkpoint: Path, links: Path) -> Path:
    """A folder of the same files that lasts when ``checkpoint`` is deleted, where that can be."""
    try:
        links.mkdir()
        for path in checkpoint.iterdir():
            os.link(path, links / path.name)
    except OSError:  # a file system without hard links
        return checkpoint
    return links
