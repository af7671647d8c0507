"""A run's checkpoints in a second place, such as an object store, whole or not at all.

Under the mirror's root lies what lies in the run's folder: ``checkpoints/step-00000100/`` and the
run's small files. ``meta.json``, which names every other file of a checkpoint with its size and
checksum, is copied last and deleted first. So a checkpoint whose ``meta.json`` is there and sound
was copied whole, whatever became of the process that copied it.

fsspec carries the files. Who may write where is for its back ends to find out (``AWS_PROFILE``,
``GOOGLE_APPLICATION_CREDENTIALS``, an instance's role): addresses hold no secrets.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import fsspec
from fsspec.core import url_to_fs

from hecate.checkpoint import folder as folders
from hecate.checkpoint.integrity import META_FILE, check_sizes, read_record
from hecate.errors import CheckpointError, ConfigError, StorageError

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
WITHOUT_FOLDERS = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "az", "memory"})
RUN_FILES = ("config.yaml", "starts.jsonl", "metrics.jsonl", "tokenizer")
"""What of a run is copied beside its checkpoints, where it is there."""


class Mirror:
    """One run's copy. Methods raise ``StorageError`` when the storage cannot be reached or refuses.

    Args:
        address: ``s3://bucket/prefix``, ``gs://...``, a path, or what else fsspec knows.
        name: the run's; its copy lies under that name.
    """

    def __init__(self, address: str, name: str) -> None:
        self.address = f"{address.rstrip('/')}/{name}"
        self._files, self._root = _open(self.address)
        protocol = self._files.protocol
        names = {protocol} if isinstance(protocol, str) else set(protocol)
        self._makes_folders = not names & WITHOUT_FOLDERS

    def steps(self) -> list[int]:
        """The steps whose ``meta.json`` is there, oldest first."""
        try:
            self._files.invalidate_cache()
            found = self._files.glob(f"{self._checkpoints}/step-*/{META_FILE}")
        except Exception as error:
            raise self._failed("listing", error) from error
        steps = (folders.step_of(str(path).split("/")[-2]) for path in found)
        return sorted(step for step in steps if step is not None)

    def put(
        self, run: Path, checkpoint: Path, step: int, going_on: Callable[[], bool] = lambda: True
    ) -> None:
        """Copy ``checkpoint`` of that step, and the small files of ``run`` as they are now.

        A copy of the same step that is there is replaced; until the new one is whole there is none.
        ``going_on`` is asked before each file; a copy that does not go on is left half done.
        """
        target = self._step(step)
        try:
            self._remove(step)
            names = sorted(path.name for path in checkpoint.iterdir() if path.name != META_FILE)
            present = [name for name in RUN_FILES if (run / name).exists()]
            self._copy(checkpoint, names, target, going_on)
            self._copy(run, _files_in(run, present), self._root, going_on)
            self._copy(checkpoint, [META_FILE], target, going_on)
        except Exception as error:
            raise self._failed("copying a checkpoint", error) from error

    def fetch(self, run: Path, later_than: int) -> Path | None:
        """Copy the newest whole checkpoint back into ``run``, if it is ``later_than`` that step.

        With it come the run's small files that are not there. A copy whose ``meta.json`` is damaged
        is passed over. Returns where the checkpoint stands.
        """
        checkpoints = run / "checkpoints"
        for step in reversed([step for step in self.steps() if step > later_than]):
            partial = folders.partial_folder(checkpoints, step)
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            try:
                self._get(self._step(step), [META_FILE], partial)
                record = read_record(partial)
            except CheckpointError:
                shutil.rmtree(partial)
                continue
            self._get(self._step(step), sorted(record.files), partial)
            check_sizes(partial, record.files)
            self._get_run_files(run)
            final = folders.step_folder(checkpoints, step)
            folders.publish(partial, final)
            return final
        return None

    def keep_newest(self, keep: int) -> None:
        """Delete all but the ``keep`` newest checkpoints; 0 keeps all."""
        steps = self.steps()
        try:
            for step in steps[: max(0, len(steps) - keep)] if keep else []:
                self._remove(step)
        except Exception as error:
            raise self._failed("deleting an old checkpoint", error) from error

    @property
    def _checkpoints(self) -> str:
        return f"{self._root}/checkpoints"

    def _step(self, step: int) -> str:
        return f"{self._checkpoints}/{folders.step_folder(Path(), step).name}"

    def _copy(
        self, source: Path, names: Iterable[str], target: str, going_on: Callable[[], bool]
    ) -> None:
        for name in names:
            if not going_on():
                return
            path = f"{target}/{name}"
            if self._makes_folders:
                self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
            self._files.put_file(str(source / name), path)

    def _get(self, source: str, names: Iterable[str], target: Path) -> None:
        try:
            for name in names:
                self._files.get_file(f"{source}/{name}", str(target / name))
        except Exception as error:
            raise self._failed("reading a checkpoint", error) from error

    def _get_run_files(self, run: Path) -> None:
        try:
            for name in RUN_FILES:
                source = f"{self._root}/{name}"
                if not (run / name).exists() and self._files.exists(source):
                    self._files.get(source, str(run / name), recursive=self._files.isdir(source))
        except Exception as error:
            raise self._failed("reading a run's files", error) from error

    def _remove(self, step: int) -> None:
        target = self._step(step)
        for path in (f"{target}/{META_FILE}", target):
            if self._files.exists(path):
                self._files.rm(path, recursive=path == target)
        self._files.invalidate_cache()

    def _failed(self, what: str, error: Exception) -> StorageError:
        return StorageError(
            f"{what} at {self.address} failed",
            got=f"{type(error).__name__}: {error}"[:300],
            expected="a storage that can be reached and written",
            fix="see to the network, the bucket and this machine's credentials",
        )


def check_address(address: str) -> None:
    """Raise ValueError for an address of a mirror that holds a secret."""
    authority = address.partition("://")[2].partition("/")[0]
    if "@" in authority:
        raise ValueError(
            "an address has no place for credentials, since it is logged; leave them to the "
            "environment"
        )


def _open(address: str) -> tuple[fsspec.AbstractFileSystem, str]:
    scheme = address.partition("://")[0] if "://" in address else "file"
    try:
        files, root = url_to_fs(address if "://" in address else str(Path(address).expanduser()))
        return files, str(root)
    except ImportError as error:
        extra = EXTRAS.get(scheme)
        raise ConfigError(
            f"checkpoint.mirror {address} needs a package that is not installed",
            got=str(error),
            fix=f"pip install 'hecate[{extra}]'" if extra else "install the package that it names",
        ) from error
    except ValueError as error:
        raise ConfigError(
            f"checkpoint.mirror {address} is no address that can be written to",
            got=str(error),
            expected="s3://bucket/prefix, gs://bucket/prefix or a path",
        ) from error


def _files_in(run: Path, names: Iterable[str]) -> list[str]:
    """``names``, folders replaced by the files in them."""
    found = []
    for name in names:
        path = run / name
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        found += [file.relative_to(run).as_posix() for file in files if file.is_file()]
    return found
