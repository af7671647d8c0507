"""The memory that packed weights lie in: this process's own, or one for all replicas of a machine.

Shared, it is a file in memory without a name, sealed once it is filled: nobody can change or cut
it, replicas find it through one another (``serving.memory.rendezvous``), and it is freed with the
last of them. It takes none of /dev/shm's room. It is in large pages where the kernel gives them
(MADV_COLLAPSE, Linux 6.1), for which nothing has to be set.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import logging
import os
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
import transformers

from serving.memory.kv import mapped
from serving.memory.rendezvous import Meeting, meeting

_LOG = logging.getLogger(__name__)

_PAGE = 4096
_LARGE_PAGE = 2 << 20
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
_SOURCES = ("packing.py", "compiled.py", "structure.py")  # beside this file: what lies where


@dataclass(frozen=True)
class Sharing:
    """With whom packed weights are shared: with those of ``digest`` that meet in ``folder``.

    ``small_pages``: even where there are no large ones. Measured on a 108M model, a step of one
    token then takes 1.2 times as long.
    """

    digest: str
    folder: Path
    small_pages: bool = False


class PanelMemory:
    """``num_bytes`` at ``address``. ``filled``: another process has packed the weights already.

    Fill it within its context, unless it is; others wait meanwhile, and find it afterwards. What
    stands in the way of sharing is logged, and the memory is this process's own.
    """

    def __init__(
        self, lib: ctypes.CDLL, num_bytes: int, sharing: Sharing | None, dtype: torch.dtype
    ) -> None:
        self._library = lib
        self.num_bytes = num_bytes
        self._size = -(-num_bytes // _PAGE) * _PAGE
        self._file = -1
        self._meeting: Meeting | None = None
        self._release: Callable[[], object] = lambda: None
        self._open = ExitStack()
        self.filled = False
        self.shared = False  # whether others can find it
        if sharing is not None:
            self._mark = _mark(lib, num_bytes, sharing.digest, dtype)
            try:
                self._share(sharing)
                return
            except OSError as why:
                self._open.close()
                self._release()
                _alone(why)
        self._memory = mapped(num_bytes, torch.uint8)
        self.address = self._memory.data_ptr()

    def __enter__(self) -> PanelMemory:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._open:
            if self._meeting is not None and kind is None:
                try:
                    self._seal()
                    self._meeting.announce(self._file)
                    self.shared = True
                except OSError as why:
                    _alone(why)

    def _share(self, sharing: Sharing) -> None:
        key = hashlib.sha256(self._mark).hexdigest()
        place = self._open.enter_context(meeting(sharing.folder, key))
        found = place.find(self._fits)
        if found is None:
            made = os.memfd_create("hecate-weights", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            try:
                os.ftruncate(made, self._size + _PAGE)
            except OSError:
                os.close(made)
                raise
            self._map(made, writable=True)
            large = self._library.hecate_collapse(self.address, self._size)
            if 2 * large < self._size // _LARGE_PAGE and not sharing.small_pages:
                raise OSError("the kernel gives no large pages for that (engine.share_weights: on)")
            self._meeting = place
            return
        self._map(found, writable=False)
        self.filled = True
        with self._open:
            try:
                place.announce(found)
                self.shared = True
            except OSError as why:
                _alone(why)  # but it goes on with what it found

    def _fits(self, file: int) -> bool:
        """Whether ``file`` is whole, what we would make, and can no longer change."""
        if os.fstat(file).st_size != self._size + _PAGE:
            return False
        if fcntl.fcntl(file, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
            return False
        return os.pread(file, len(self._mark), self._size) == self._mark

    def _map(self, file: int, *, writable: bool) -> None:
        at = self._library.hecate_map(file, self._size, int(writable))
        if not at:
            os.close(file)
            raise OSError(f"{self._size} bytes cannot be mapped")
        self.address = int(at)
        self._file = file
        release = weakref.finalize(self, _free, self._library, at, self._size, file)
        release.atexit = False  # when the engine's thread may still read
        self._release = release

    def _seal(self) -> None:
        """Mark the file as whole, and keep everybody from changing it."""
        os.pwrite(self._file, self._mark, self._size)
        reading = os.open(f"/proc/self/fd/{self._file}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            # A file that is mapped by what may write to it cannot be sealed.
            if self._library.hecate_map_again(reading, self.address, self._size):
                raise OSError("packed weights cannot be mapped for reading")
        finally:
            os.close(reading)
        fcntl.fcntl(self._file, fcntl.F_ADD_SEALS, _SEALS)


def _mark(lib: ctypes.CDLL, num_bytes: int, digest: str, dtype: torch.dtype) -> bytes:
    """What the bytes depend on: the weights, how transformers reads them, and who packed them how.

    The library's name is that of its sources, its compiler and the processor.
    """
    layout = hashlib.sha256()
    for name in _SOURCES:
        layout.update((Path(__file__).parent / name).read_bytes())
    parts = (digest, dtype, num_bytes, transformers.__version__, Path(lib._name).stem)
    return "\n".join(["hecate packed weights", *map(str, parts), layout.hexdigest()]).encode()


def _free(lib: ctypes.CDLL, address: int, size: int, file: int) -> None:
    lib.hecate_unmap(address, size)
    os.close(file)


def _alone(why: OSError) -> None:
    _LOG.warning("packed weights are not shared with other replicas: %s", why)
