"""Checkpoints of a running job: saved in the background, whole or not at all, loaded at any world.

``torch.distributed.checkpoint`` plans and writes; around it this file sees to staging, atomic
appearance, retention, and to every rank hearing of an error on any rank.

Note [Who may use the checkpoint group]
    The thread that writes talks to its peers over ``group``. The caller's thread uses it too (in
    ``newest``, ``load``, and a save that is not asynchronous), but only after ``_join`` has seen
    that thread end. All ranks call the store's methods in the same order.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pydantic import Field, field_validator
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from hecate.checkpoint import folder as folders
from hecate.checkpoint import integrity
from hecate.checkpoint.agreement import as_ours, gather, together
from hecate.checkpoint.mirror import check_address
from hecate.checkpoint.names import describe
from hecate.checkpoint.stages import Reached, Stage, unnoticed
from hecate.checkpoint.writing import LocalPlanner, StagingBuffers, dcp_writer, local_pieces
from hecate.config import Config
from hecate.errors import CheckpointError, CollectiveFailure, HecateError
from hecate.mesh import lost_peer, naming

_NAMED_PROBLEMS = 5


class CheckpointConfig(Config):
    """How often to save, how many checkpoints to keep (0: all), and whether training goes on.

    ``mirror``: where each finished checkpoint is copied, and fetched from by ``--resume auto``: an
    address of fsspec's (``s3://bucket/prefix``, ``gs://bucket/prefix``) or a path; "" is nowhere.
    """

    every: int = Field(500, ge=1)
    keep: int = Field(2, ge=0)
    asynchronous: bool = True
    mirror: str = ""

    @field_validator("mirror")
    @classmethod
    def _without_credentials(cls, address: str) -> str:
        check_address(address)
        return address


class _Save(threading.Thread):
    """Writes one checkpoint."""


def join_saves() -> None:
    """Return when no thread of this process writes a checkpoint any more.

    For a process that has lost a group and goes on with another: what an old thread writes must not
    come between what a new store does in the same folder.
    """
    for thread in threading.enumerate():
        if isinstance(thread, _Save):
            thread.join()


class CheckpointStore:
    """The checkpoints of one job in one folder that all its ranks see.

    The state is one flat dict of plain tensors and DTensors, keyed as ``names`` says. A key may be
    on some ranks only. Where a plain tensor is on several they hold equal copies, and one of them
    writes it. Making a store and calling any method but ``read_meta`` is collective.

    Args:
        group: a group of CPU tensors that nothing else uses.
        keep: how many checkpoints to keep; 0 keeps all.
        reached: told of each stage of a save, by the thread that is there.
    """

    def __init__(
        self,
        folder: Path,
        *,
        group: dist.ProcessGroup,
        rank: int,
        keep: int,
        reached: Reached = unnoticed,
    ) -> None:
        self.folder = folder
        self._group = group
        self._rank = rank
        self._keep = keep
        self._reached = reached
        self._staging = StagingBuffers()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        what = f"opening the checkpoint folder {folder}"
        with together(group, what):
            if rank == 0:
                folders.open_folder(folder)
        with together(group, what):
            folders.require_shared(folder, rank)
        with together(group, what):
            if rank == 0:
                folders.close_probe(folder)

    def save(
        self,
        step: int,
        state: Mapping[str, Tensor],
        meta: Mapping[str, Any],
        *,
        asynchronous: bool,
    ) -> None:
        """Write the checkpoint of ``step``; raise what the save before this one ended with.

        Asynchronous: returns once ``state`` is copied, after waiting for the save before; the
        state may then be changed at once. Errors come up in the next ``save`` or ``wait``, on
        every rank. Otherwise returns when the checkpoint is whole, and makes no copy.

        Args:
            meta: a JSON object; rank 0's is kept. What differs by rank belongs into ``state``.
        """
        self.wait()
        text = integrity.encode_meta(meta)
        with torch.no_grad():
            pieces = local_pieces(state)
            planner = LocalPlanner(state, self._staging.copy(pieces) if asynchronous else pieces)
        self._reached(Stage.STAGED)
        if not asynchronous:
            self._write(step, planner, text)
            return
        self._thread = _Save(
            target=self._write_in_background,
            args=(step, planner, text),
            name=f"checkpoint-{step}",
            daemon=True,  # a job that ends on an error must not wait for a peer that is gone
        )
        self._thread.start()

    def wait(self) -> None:
        """Return when no save is under way; raise, once, what the last one ended with."""
        self._join()
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def newest(self) -> Path | None:
        """The checkpoint of the highest step, as rank 0 sees it; ``None`` where there is none.

        A damaged one counts: ``load`` then refuses it by name instead of going further back.
        """
        self._join()
        found: Path | None = None
        with together(self._group, f"listing the checkpoints in {self.folder}"):
            if self._rank == 0:
                found = folders.newest_checkpoint(self.folder)
        return gather(self._group, "the choice of a checkpoint", found)[0]

    def refuse_later_than(self, step: int) -> None:
        """Raise ``CheckpointError`` if the folder has checkpoints later than ``step``.

        For a job that is about to start from ``step``; ``load`` asks it of itself.
        """
        self._join()
        with together(self._group, f"listing the checkpoints in {self.folder}"):
            if self._rank == 0:
                folders.refuse_later(self.folder, step)

    def read_meta(self, path: Path) -> dict[str, Any]:
        """The ``meta`` saved with the checkpoint at ``path``; reads only ``meta.json``."""
        return integrity.read_record(path).meta

    def load(self, path: Path, state: Mapping[str, Tensor]) -> None:
        """Fill the tensors of ``state`` in place from the checkpoint at ``path``.

        The world and the owners of the experts may differ from those that saved: each rank asks
        for the keys that it holds now. Every byte is checked first (each rank reads a share of the
        tensors), and every key's presence, shape and dtype. Nothing is filled unless all is well.
        """
        self._join()
        what = f"reading checkpoint {path}"
        with together(self._group, what):
            record = integrity.read_record(path)
            integrity.check_sizes(path, record.files)
            integrity.check_sums(path, record.files, share=self._rank, shares=self._group.size())
        self.refuse_later_than(record.step)
        reader = FileSystemReader(path)
        problems: list[str] = []
        with together(self._group, what):
            problems = _mismatches(state, reader.read_metadata())
        self._refuse_mismatches(path, gather(self._group, what, problems))
        planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
        with torch.no_grad(), naming(what, self._rank):
            try:
                dcp_load(
                    dict(state),
                    storage_reader=reader,
                    planner=planner,
                    process_group=self._group,
                )
            except CheckpointException as error:
                raise _first_failure(error, what) from error

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write_in_background(self, step: int, planner: LocalPlanner, meta: str) -> None:
        try:
            self._write(step, planner, meta)
        except BaseException as error:
            self._failure = error

    def _write(self, step: int, planner: LocalPlanner, meta: str) -> None:
        partial = folders.partial_folder(self.folder, step)
        final = folders.step_folder(self.folder, step)
        what = f"writing checkpoint {final}"
        with together(self._group, what):
            if self._rank == 0:
                _make_room(self.folder, partial, step)
        self._reached(Stage.FOLDER)
        try:
            self._write_files(partial, step, planner, meta, what)
            with together(self._group, what):
                if self._rank == 0:
                    folders.publish(partial, final)
                    self._reached(Stage.PUBLISHED)
        except CollectiveFailure:
            raise  # Others may still be writing; the next job clears what they leave.
        except HecateError:
            # The error came by way of the group: no rank writes any more, and none ends the job
            # before the half-written files are gone.
            with together(self._group, what):
                shutil.rmtree(partial, ignore_errors=True)
            raise
        with together(self._group, f"deleting old checkpoints in {self.folder}"):
            if self._rank == 0:
                folders.keep_newest(self.folder, self._keep, self._reached)
        self._reached(Stage.DONE)

    def _write_files(
        self, partial: Path, step: int, planner: LocalPlanner, meta: str, what: str
    ) -> None:
        writer, files = dcp_writer(partial, self._reached)
        with naming(what, self._rank):
            try:
                # The planner has the state already; DCP would only look it through once more.
                dcp_save({}, storage_writer=writer, planner=planner, process_group=self._group)
            except CheckpointException as error:
                raise _first_failure(error, what) from error
        tables = gather(self._group, what, files.records)
        self._reached(Stage.FILES)
        with together(self._group, what):
            if self._rank == 0:
                records = {name: record for table in tables for name, record in table.items()}
                integrity.check_sizes(partial, records)
                integrity.write_record(partial, step, meta, records)
                self._reached(Stage.RECORD)

    def _refuse_mismatches(self, path: Path, problems_by_rank: Iterable[list[str]]) -> None:
        problems = list(dict.fromkeys(line for lines in problems_by_rank for line in lines))
        if problems:
            more = len(problems) - _NAMED_PROBLEMS
            raise CheckpointError(
                f"checkpoint {path} does not fit this model",
                got="; ".join(problems[:_NAMED_PROBLEMS])
                + (f"; and {more} more" if more > 0 else ""),
                expected="every tensor of the model and its optimizer, in equal shape and dtype",
                fix="resume with the configuration that was saved (model, dtype, optimizer)",
            )


def _mismatches(state: Mapping[str, Tensor], metadata: Metadata) -> list[str]:
    problems = []
    for key, tensor in state.items():
        assert not tensor.is_meta, f"{key} has no memory to fill"
        saved = metadata.state_dict_metadata.get(key)
        if not isinstance(saved, TensorStorageMetadata):
            problems.append(f"{describe(key)} is missing ({key})")
        elif (saved.size, saved.properties.dtype) != (tensor.shape, tensor.dtype):
            problems.append(
                f"{describe(key)} is {tuple(saved.size)} {saved.properties.dtype} instead of "
                f"{tuple(tensor.shape)} {tensor.dtype} ({key})"
            )
    return problems


def _make_room(folder: Path, partial: Path, step: int) -> None:
    folders.refuse_later(folder, step)
    final = folders.step_folder(folder, step)
    if final.exists():
        raise CheckpointError(
            f"step {step} is already saved",
            got=f"a second save of it into {final}",
            expected="each step to be saved once",
            fix=f"move {final.name} away if it belongs to another run",
        )
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir()


def _first_failure(error: CheckpointException, what: str) -> BaseException:
    rank = min(error.failures)
    failure = error.failures[rank][0]
    if lost_peer(failure) or not isinstance(failure, Exception):
        return failure  # of a peer that is lost ``naming`` tells
    return as_ours(failure, what, rank)
