"""``meta.json``: what a checkpoint says of itself, and how damage to any byte of it is found.

Each tensor (the shard of it that a rank saved) has a CRC-32 of its own, taken while it is written,
and every byte of a file of tensors belongs to one: so damage is told by the tensor's name. CRC-32
and not SHA-256: the enemy is a torn write or a bad disk, not a forger, and CRC-32 finds every burst
of up to 32 flipped bits and misses one in four thousand million of the rest, at more than twice the
speed. ``meta.json`` is written last and carries the checksum of its own content.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import RawIOBase
from itertools import accumulate
from pathlib import Path
from typing import Any

from hecate.checkpoint.folder import newest_checkpoint, saved_steps
from hecate.checkpoint.names import describe
from hecate.errors import CheckpointError

META_FILE = "meta.json"
FORMAT = 2
_FORMATS = (1, FORMAT)
"""What can be read; 1 had one checksum for a file."""
_CONTENT = ("format", "step", "meta", "files")
_CHUNK_BYTES = 1 << 22
_NAMED_PARTS = 3


@dataclass(frozen=True)
class PartRecord:
    """What lies in a file from one place to the next: a shard of a tensor.

    ``key`` is its checkpoint key, "" of what is no tensor; ``offsets`` where in the whole tensor
    the shard begins, one for each dim.
    """

    key: str
    offsets: tuple[int, ...]
    size_bytes: int
    crc32: int

    def __str__(self) -> str:
        return describe(self.key) + (f" from {list(self.offsets)}" if any(self.offsets) else "")


@dataclass(frozen=True)
class FileRecord:
    """What a whole file looks like: its parts, one after the other."""

    parts: tuple[PartRecord, ...]

    @property
    def size_bytes(self) -> int:
        return sum(part.size_bytes for part in self.parts)


@dataclass(frozen=True)
class CheckpointRecord:
    """The content of ``meta.json``: the trainer's ``meta``, and every other file's record."""

    step: int
    meta: dict[str, Any]
    files: dict[str, FileRecord]


def encode_meta(meta: Mapping[str, Any]) -> str:
    """``meta`` as JSON, which also makes it safe from later changes; TypeError if it is not."""
    return json.dumps(meta)


def write_record(folder: Path, step: int, meta: str, files: Mapping[str, FileRecord]) -> None:
    """Write ``meta.json`` through to the disk; ``meta`` is what ``encode_meta`` gave."""
    content = {
        "format": FORMAT,
        "step": step,
        "meta": json.loads(meta),
        "files": {
            name: [[part.key, part.offsets, part.size_bytes, part.crc32] for part in record.parts]
            for name, record in sorted(files.items())
        },
    }
    document = {**content, "crc32": _content_crc(content)}
    with (folder / META_FILE).open("w", encoding="utf-8") as file:
        json.dump(document, file)
        file.flush()
        os.fsync(file.fileno())


def read_record(path: Path) -> CheckpointRecord:
    """Read and check ``meta.json`` of the checkpoint at ``path``."""
    if not path.is_dir():
        newest = newest_checkpoint(path.parent)
        raise CheckpointError(
            f"there is no checkpoint {path}",
            got="a file" if path.exists() else "nothing at this path",
            expected="a folder such as step-00000100",
            fix=f"use {newest}" if newest else "give the path of a checkpoint that exists",
        )
    file = path / META_FILE
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise damaged(path, META_FILE, got="no such file", expected="it to be there") from None
    except ValueError as error:
        raise damaged(path, META_FILE, got=str(error), expected="valid JSON") from error
    if isinstance(document, dict) and isinstance(document.get("format"), int):
        if document["format"] not in _FORMATS:
            raise CheckpointError(
                f"checkpoint {path} has another format",
                got=f"format {document['format']}",
                expected=f"format {' or '.join(map(str, _FORMATS))}",
                fix="read it with the version of hecate that wrote it",
            )
    try:
        content = {name: document[name] for name in _CONTENT}
        found, expected = _content_crc(content), document["crc32"]
        if found != expected:
            raise damaged(path, META_FILE, got=f"CRC-32 {found}", expected=f"CRC-32 {expected}")
        read = _whole_file if content["format"] == 1 else _file_of_parts
        files = {name: read(record) for name, record in content["files"].items()}
        return CheckpointRecord(content["step"], content["meta"], files)
    except (KeyError, TypeError, AttributeError) as error:
        raise damaged(path, META_FILE, got=repr(error), expected="the content it had") from error


def check_sizes(path: Path, files: Mapping[str, FileRecord]) -> None:
    """Raise ``CheckpointError`` naming the first file that is missing or has another size."""
    for name, record in files.items():
        expected = f"{record.size_bytes} bytes"
        try:
            size_bytes = (path / name).stat().st_size
        except FileNotFoundError:
            raise damaged(path, name, got="no such file", expected=expected) from None
        if size_bytes == record.size_bytes:
            continue
        got, lost = f"{size_bytes} bytes", _beyond(record, size_bytes)
        if lost:
            got += f", which end before the end of {_listed(lost)}"
        raise damaged(path, name, got=got, expected=expected)


def check_sums(path: Path, files: Mapping[str, FileRecord], *, share: int, shares: int) -> None:
    """Read every ``shares``-th part, from ``share`` on, and raise ``CheckpointError`` for damage.

    It names the tensors of the first file that has any which changed.
    """
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    count = 0
    for name in sorted(files):
        changed, sums = [], []
        with (path / name).open("rb", buffering=0) as file:
            for part, start in _placed(files[name]):
                count += 1
                if count % shares != share:
                    continue
                file.seek(start)
                crc = _crc_of(file, part.size_bytes, buffer)
                if crc != part.crc32:
                    changed.append(part)
                    sums.append((crc, part.crc32))
        if changed:
            what = f"{_listed(changed)} in {name}" if changed[0].key else name
            got, expected = (f"CRC-32 {crc:08x}" for crc in sums[0])
            raise damaged(path, what, got=got, expected=expected)


def _crc_of(file: RawIOBase, size_bytes: int, buffer: memoryview) -> int:
    """The CRC-32 of the next ``size_bytes`` of ``file``; of fewer, where it ends before."""
    crc = 0
    while size_bytes and (count := file.readinto(buffer[:size_bytes])):
        crc = zlib.crc32(buffer[:count], crc)
        size_bytes -= count
    return crc


def _placed(record: FileRecord) -> Iterator[tuple[PartRecord, int]]:
    """Each part and the byte at which it begins."""
    starts = accumulate((part.size_bytes for part in record.parts), initial=0)
    return zip(record.parts, starts, strict=False)


def _beyond(record: FileRecord, size_bytes: int) -> list[PartRecord]:
    """The tensors that a file of only ``size_bytes`` does not hold whole."""
    return [
        part for part, start in _placed(record) if part.key and start + part.size_bytes > size_bytes
    ]


def _listed(parts: Sequence[PartRecord]) -> str:
    more = len(parts) - _NAMED_PARTS
    named = ", ".join(str(part) for part in parts[:_NAMED_PARTS])
    return named + (f" and {more} more" if more > 0 else "")


def _file_of_parts(record: Sequence[Sequence[Any]]) -> FileRecord:
    return FileRecord(
        tuple(PartRecord(key, tuple(offsets), size, crc) for key, offsets, size, crc in record)
    )


def _whole_file(record: Mapping[str, int]) -> FileRecord:
    return FileRecord((PartRecord("", (), record["size_bytes"], record["crc32"]),))


def damaged(path: Path, name: str, *, got: str, expected: str) -> CheckpointError:
    """The error that refuses the checkpoint at ``path`` because of ``name``, a file or tensors."""
    others = [other.name for other in saved_steps(path.parent).values() if other != path]
    instead = f", or move {path.name} away and continue from {others[-1]}" if others else ""
    return CheckpointError(
        f"checkpoint {path} is damaged: {name}",
        got=got,
        expected=expected,
        fix=f"restore {path.name} from a copy{instead}",
    )


def _content_crc(content: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())
