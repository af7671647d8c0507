"""What hangs between the store and ``torch.distributed.checkpoint`` while a checkpoint is written.

The files are plain DCP: ``torch.distributed.checkpoint.load`` reads them without us.
"""

from __future__ import annotations

import io
import os
import zlib
from collections import defaultdict
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import (
    DefaultSavePlanner,
    create_default_local_save_plan,
)
from torch.distributed.checkpoint.filesystem import (
    FileSystem,
    FileSystemWriter,
    _StorageWriterTransforms,
)
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, WriteItem
from torch.distributed.tensor import DTensor

from hecate.checkpoint.integrity import FileRecord, PartRecord
from hecate.checkpoint.names import describe, has_one_owner
from hecate.checkpoint.stages import Reached, Stage
from hecate.errors import HecateError

_BUFFER_BYTES = 1 << 20


def local_pieces(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """This rank's part of each tensor: the local shard of a DTensor, a plain tensor itself."""
    return {
        key: (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()
        for key, tensor in state.items()
    }


class StagingBuffers:
    """Copies of the local pieces in CPU memory that is kept from one checkpoint to the next.

    A buffer belongs to a shape and not to a key, so that experts may change owners between two
    checkpoints without new memory. Buffers are pinned where the tensors are on a CUDA device.
    The caller's thread fills them; they are free again once the write that reads them has ended.
    """

    def __init__(self) -> None:
        self._buffers: list[Tensor] = []

    def copy(self, pieces: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The copies by key. Complete on return: ``pieces`` may be changed at once."""
        spare: dict[tuple[torch.Size, torch.dtype, bool], list[Tensor]] = defaultdict(list)
        for buffer in self._buffers:
            spare[buffer.shape, buffer.dtype, buffer.is_pinned()].append(buffer)
        copies: dict[str, Tensor] = {}
        for key, piece in pieces.items():
            kind = (piece.shape, piece.dtype, piece.is_cuda)
            if spare[kind]:
                copies[key] = spare[kind].pop()
            else:
                copies[key] = torch.empty(
                    piece.shape, dtype=piece.dtype, device="cpu", pin_memory=piece.is_cuda
                )
            copies[key].copy_(piece, non_blocking=True)
        if any(piece.is_cuda for piece in pieces.values()):
            torch.cuda.synchronize()
        self._buffers = list(copies.values())
        return copies


class LocalPlanner(DefaultSavePlanner):
    """Plans from the live state when it is made; later hands out only ``pieces``.

    So the writing thread touches neither the live tensors nor their meshes. DCP drops all but one
    of a plain tensor's copies unseen; the copies must agree, and an expert must have no copies.
    """

    def __init__(self, state: Mapping[str, Tensor], pieces: Mapping[str, Tensor]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._local_plan = create_default_local_save_plan(dict(state), False)
        self._pieces = pieces

    def create_local_plan(self) -> SavePlan:
        self.plan = self._local_plan
        return self._local_plan

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        return self._pieces[index.fqn]

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        seen: dict[str, tuple[int, torch.Size, torch.dtype]] = {}
        for rank, plan in enumerate(all_plans):
            for item in plan.items:
                key, data = item.index.fqn, item.tensor_data
                assert data is not None, "the state holds tensors only"
                first, size, dtype = seen.setdefault(key, (rank, data.size, data.properties.dtype))
                differs = (size, dtype) != (data.size, data.properties.dtype)
                if differs or (first != rank and has_one_owner(key)):
                    raise HecateError(
                        f"ranks {first} and {rank} both save {describe(key)}",
                        got=f"{tuple(size)} {dtype} and {tuple(data.size)} {data.properties.dtype}",
                        expected="one owner of each expert, equal copies of anything else",
                    )
        return super().create_global_plan(all_plans)


class RecordedFiles(FileSystem):
    """DCP's files, each summed up while it is written and through to the disk when it is closed."""

    def __init__(self) -> None:
        self.records: dict[str, FileRecord] = {}

    @contextmanager
    def create_stream(
        self, path: str | os.PathLike[str], mode: str
    ) -> Generator[io.IOBase, None, None]:
        assert mode == "wb", "a checkpoint is written, not changed"
        file = _RecordedFile(Path(path))
        try:
            with file:
                yield file
        except Exception as error:
            # torch.save tells of a full disk only as a RuntimeError about its archive.
            if file.failure is not None:
                raise file.failure from error
            raise
        self.records[Path(path).name] = file.record()

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        super().rename(path, new_path)
        self.records[Path(new_path).name] = self.records.pop(Path(path).name)


class _RecordedFile(io.BufferedWriter):
    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path, "wb"), _BUFFER_BYTES)
        self._parts: list[PartRecord] = []
        self._key, self._offsets = "", tuple[int, ...]()
        self._size_bytes = self._crc32 = 0
        self.failure: OSError | None = None

    def begin_part(self, key: str, offsets: tuple[int, ...]) -> None:
        """What is written from now on belongs to this shard of ``key``."""
        self._end_part()
        self._key, self._offsets = key, offsets

    def record(self) -> FileRecord:
        """What was written so far."""
        self._end_part()
        return FileRecord(tuple(self._parts))

    def _end_part(self) -> None:
        if self._size_bytes:
            part = PartRecord(self._key, self._offsets, self._size_bytes, self._crc32)
            self._parts.append(part)
        self._size_bytes = self._crc32 = 0

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._crc32 = zlib.crc32(view, self._crc32)
        self._size_bytes += len(view)
        try:
            return super().write(view)
        except OSError as error:
            self.failure = error
            raise

    def close(self) -> None:
        if self.closed:
            return
        try:
            if self.failure is None:
                self.flush()
                os.fsync(self.fileno())
        except OSError as error:
            self.failure = error
            raise
        finally:
            super().close()


class _Parts(_StorageWriterTransforms):
    """Tells the file which tensor comes next; leaves the bytes as they are."""

    def __init__(self, reached: Reached) -> None:
        super().__init__()
        self._reached = reached

    def transform_save_stream(
        self, write_item: WriteItem, raw_stream: io.IOBase
    ) -> tuple[IO[bytes], list[str]]:
        self._reached(Stage.TENSOR)
        assert isinstance(raw_stream, _RecordedFile)
        offsets = write_item.index.offset or ()
        raw_stream.begin_part(write_item.index.fqn, tuple(offsets))
        return super().transform_save_stream(write_item, raw_stream)


def dcp_writer(folder: Path, reached: Reached) -> tuple[FileSystemWriter, RecordedFiles]:
    """DCP's writer into ``folder``, and the records that it leaves."""
    files = RecordedFiles()
    # The files see to fsync themselves: DCP's own comes before the last buffer is flushed.
    writer = FileSystemWriter(folder, sync_files=False)
    writer.fs = files
    writer.transforms = _Parts(reached)
    return writer, files
