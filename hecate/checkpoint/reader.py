"""Read a checkpoint alone, one tensor at a time: no process group, no peers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from hecate.checkpoint import integrity
from hecate.checkpoint.names import describe
from hecate.errors import CheckpointError


class CheckpointReader:
    """The checkpoint at ``path``: its ``meta``, its keys, and any tensor whole on the CPU.

    Opening checks every file's size, and reads them all once to check their checksums unless
    ``checksums`` is false. ``CheckpointError`` names the file that is missing or the tensor
    that has changed.
    """

    def __init__(self, path: Path, *, checksums: bool = True) -> None:
        record = integrity.read_record(path)
        integrity.check_sizes(path, record.files)
        if checksums:
            integrity.check_sums(path, record.files, share=0, shares=1)
        self.path = path
        self.step = record.step
        self.meta: dict[str, Any] = record.meta
        self._reader = FileSystemReader(path)
        self._metadata = self._reader.read_metadata()
        self._reader.set_up_storage_reader(self._metadata, is_coordinator=True)

    def keys(self) -> tuple[str, ...]:
        """Every key, sorted."""
        return tuple(sorted(self._metadata.state_dict_metadata))

    def tensor(self, key: str) -> Tensor:
        """The tensor saved under ``key``, put together from its shards; reads nothing else."""
        saved = self._metadata.state_dict_metadata.get(key)
        if not isinstance(saved, TensorStorageMetadata):
            raise CheckpointError(
                f"checkpoint {self.path} has no {describe(key)}",
                got=f"{len(self._metadata.state_dict_metadata)} other tensors",
                expected=key,
                fix="read it with the model that it was saved from",
            )
        tensor = torch.empty(saved.size, dtype=saved.properties.dtype)
        planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
        planner.set_up_planner({key: tensor}, self._metadata, is_coordinator=True)
        self._reader.read_data(planner.create_local_plan(), planner).wait()
        return tensor
