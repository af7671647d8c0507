"""``meta.json``: what a checkpoint says of itself, and how damage to any byte of it is found.

Each file's size and CRC-32 are recorded while it is written. CRC-32 and not SHA-256: the enemy is
a torn write or a bad disk, not a forger, and CRC-32 finds every burst of up to 32 flipped bits and
misses one in four thousand million of the rest, at more than twice the speed. ``meta.json`` is
written last and carries the checksum of its own content.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hecate.checkpoint.folder import newest_checkpoint, saved_steps
from hecate.errors import CheckpointError

META_FILE = "meta.json"
FORMAT = 1
_CONTENT = ("format", "step", "meta", "files")
_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True)
class FileRecord:
    """What a whole file looks like."""

    size_bytes: int
    crc32: int


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
        "files": {name: asdict(files[name]) for name in sorted(files)},
    }
    document = {**content, "crc32": _content_crc(content)}
    with (folder / META_FILE).open("w", encoding="utf-8") as file:
        json.dump(document, file, indent=1)
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
        if document["format"] != FORMAT:
            raise CheckpointError(
                f"checkpoint {path} has another format",
                got=f"format {document['format']}",
                expected=f"format {FORMAT}",
                fix="read it with the version of hecate that wrote it",
            )
    try:
        content = {name: document[name] for name in _CONTENT}
        found, expected = _content_crc(content), document["crc32"]
        if found != expected:
            raise damaged(path, META_FILE, got=f"CRC-32 {found}", expected=f"CRC-32 {expected}")
        files = {name: FileRecord(**record) for name, record in content["files"].items()}
        return CheckpointRecord(content["step"], content["meta"], files)
    except (KeyError, TypeError, AttributeError) as error:
        raise damaged(path, META_FILE, got=repr(error), expected="the content it had") from error


def check_sizes(path: Path, files: Mapping[str, FileRecord]) -> None:
    """Raise ``CheckpointError`` naming the first file that is missing or has another size."""
    for name, record in files.items():
        try:
            size_bytes = (path / name).stat().st_size
        except FileNotFoundError:
            raise damaged(
                path, name, got="no such file", expected=f"{record.size_bytes} bytes"
            ) from None
        if size_bytes != record.size_bytes:
            raise damaged(
                path, name, got=f"{size_bytes} bytes", expected=f"{record.size_bytes} bytes"
            )


def check_sums(path: Path, files: Mapping[str, FileRecord], names: Iterable[str]) -> None:
    """Read ``names`` in full and raise ``CheckpointError`` naming the first that has changed."""
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    for name in names:
        crc = 0
        with (path / name).open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                crc = zlib.crc32(buffer[:count], crc)
        if crc != files[name].crc32:
            raise damaged(
                path, name, got=f"CRC-32 {crc:08x}", expected=f"CRC-32 {files[name].crc32:08x}"
            )


def damaged(path: Path, name: str, *, got: str, expected: str) -> CheckpointError:
    """The error that refuses the checkpoint at ``path`` because of its file ``name``."""
    others = [other.name for other in saved_steps(path.parent).values() if other != path]
    instead = f", or move {path.name} away and continue from {others[-1]}" if others else ""
    return CheckpointError(
        f"checkpoint {path} is damaged: {name}",
        got=got,
        expected=expected,
        fix=f"restore {name} from a copy{instead}",
    )


def _content_crc(content: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())
