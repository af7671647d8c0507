"""Which files a corpus is made of, and the digest of what each of them holds."""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import sysconfig
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hecate.data.cache import write_atomically
from hecate.data.config import STDLIB
from hecate.data.readers import RecordKind, not_utf8, opened
from hecate.errors import DataError

Kinds = dict[str, Literal["text", RecordKind]]

KINDS: Kinds = {
    ".txt": "text",
    ".md": "text",
    ".py": "text",
    ".jsonl": "jsonl",
    ".parquet": "parquet",
}
"""How each kind of file is read."""

RECORDS: Kinds = {suffix: kind for suffix, kind in KINDS.items() if kind != "text"}
"""Those of them that hold records."""

_NOT_THE_LIBRARY = {"__pycache__", "site-packages", "dist-packages", "test", "tests"}
"""What was installed into the library's folder later, and tests, which not all systems have."""

_HELD_OUT_NAMES = ("validation", "valid", "dev", "test")
_BLOCK_BYTES = 1 << 20
_SETTLED_S = 2.0


@dataclass(frozen=True)
class FoundFile:
    """A file (or a saved dataset's folder); ``split`` is "" where the corpus does not say."""

    name: str
    path: Path
    kind: Literal["text", RecordKind]
    size_bytes: int
    split: Literal["", "train", "held_out"] = ""


def find_files(path: str, kinds: Kinds = KINDS) -> list[FoundFile]:
    """The files of ``data.path`` that are of ``kinds``, ordered by name, empty ones left out.

    Raises ``DataError``.
    """
    root = Path(path).expanduser()
    try:
        if path == STDLIB:
            found = _walk(Path(sysconfig.get_path("stdlib")), {".py"}, _NOT_THE_LIBRARY)
        elif root.is_dir():
            found = _saved_dataset(root) or _walk(root, set(kinds), {"__pycache__"})
        elif root.exists():
            found = _single(root, kinds)
        else:
            raise DataError(
                f"data.path {path} does not exist",
                got=f"nothing at {root.absolute()}",
                expected=f"{STDLIB!r}, a file, or a folder of " + ", ".join(kinds),
                fix="correct data.path; it is taken from the folder that the command runs in",
            )
    except OSError as error:
        raise DataError(
            f"cannot read data.path {path}",
            got=f"{error.filename}: {error.strerror}",
            fix="check the permissions of the folder and its files",
        ) from error
    if not found:
        raise DataError(
            f"data.path {path} is empty",
            got="only files of 0 bytes",
            expected="some text",
            fix="correct data.path, or write the files again",
        )
    return found


def _single(path: Path, kinds: Kinds) -> list[FoundFile]:
    if path.suffix.lower() not in kinds:
        raise DataError(
            f"data.path {path} is of a kind that is not read",
            got=path.suffix or "a name without an extension",
            expected="one of " + ", ".join(kinds),
            fix="convert it, or rename plain text to .txt"
            if kinds is KINDS
            else "convert it to one record on each line (.jsonl)",
        )
    size = path.stat().st_size
    return [FoundFile(path.name, path, KINDS[path.suffix.lower()], size)] if size else []


def _walk(root: Path, suffixes: set[str], skipped: set[str]) -> list[FoundFile]:
    """Every file below ``root`` with one of ``suffixes``; hidden files and folders are not read."""

    def refuse(error: OSError) -> None:
        raise error

    found: list[FoundFile] = []
    others: Counter[str] = Counter()
    some = False
    for folder, folders, names in os.walk(root, onerror=refuse):
        folders[:] = [name for name in folders if name not in skipped and name[0] != "."]
        for name in names:
            path = Path(folder, name)
            suffix = path.suffix.lower()
            if name.startswith(".") or suffix not in suffixes:
                others[suffix or name] += 1
                continue
            some = True
            if size := path.stat().st_size:
                relative = path.relative_to(root).as_posix()
                found.append(FoundFile(relative, path, KINDS[suffix], size))
    if not some:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(8))
        raise DataError(
            f"no file below {root} is of a kind that is read",
            got=kinds or "an empty folder",
            expected="files of " + ", ".join(sorted(suffixes)),
            fix="correct data.path, or convert the files",
        )
    return sorted(found, key=lambda file: file.name)


def _saved_dataset(root: Path) -> list[FoundFile]:
    """The splits of a folder that ``save_to_disk`` wrote; nothing where it is another folder."""
    if (root / "state.json").is_file() and (root / "dataset_info.json").is_file():
        return _with_bytes(FoundFile(root.name, root, "dataset", _arrow_bytes(root)))
    listing = root / "dataset_dict.json"
    if not listing.is_file():
        return []
    try:
        names = list(json.loads(listing.read_bytes())["splits"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{listing} is damaged", got=str(error), fix="save the dataset again"
        ) from error
    if len(names) == 1:
        folder = root / names[0]
        return _with_bytes(FoundFile(names[0], folder, "dataset", _arrow_bytes(folder)))
    held_out = next((name for name in _HELD_OUT_NAMES if name in names), "")
    if "train" not in names or not held_out:
        raise DataError(
            f"{root} has no split to train on or none to hold out",
            got="the splits " + ", ".join(map(repr, names)),
            expected="train and one of " + ", ".join(_HELD_OUT_NAMES),
            fix=f"point data.path at one split, such as {root / names[0]}",
        )
    train = FoundFile("train", root / "train", "dataset", _arrow_bytes(root / "train"), "train")
    folder = root / held_out
    return _with_bytes(
        train, FoundFile(held_out, folder, "dataset", _arrow_bytes(folder), "held_out")
    )


def _with_bytes(*files: FoundFile) -> list[FoundFile]:
    return [file for file in files if file.size_bytes]


def _arrow_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.arrow"))


def digest_files(files: Sequence[FoundFile], cache: Path, *, strict: bool) -> list[str]:
    """The SHA-256 of each file, in order; "" for text that is not UTF-8 (an error if ``strict``).

    Digests are remembered by what the file system says of the files (their paths, sizes, times
    and inodes), so that a large corpus is read once. Files changed in the last seconds are not
    remembered: another change could leave the same times.
    """
    seen = json.dumps([strict, *(_stamp(file) for file in files)])
    memory = cache / "listings" / (hashlib.sha256(seen.encode()).hexdigest()[:32] + ".json")
    try:
        remembered = json.loads(memory.read_bytes())
        return [str(digest) for digest in remembered]
    except (OSError, ValueError):
        pass  # not remembered
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        digests = list(pool.map(lambda file: _digest(file, strict), files))
    newest_ns = max(_newest_ns(file) for file in files)
    if time.time() - newest_ns / 1e9 > _SETTLED_S:
        write_atomically(memory, json.dumps(digests).encode())
    return digests


def _parts(file: FoundFile) -> list[Path]:
    return sorted(file.path.glob("*.arrow")) if file.kind == "dataset" else [file.path]


def _stamp(file: FoundFile) -> list[str | int]:
    stamp: list[str | int] = [file.kind]
    for path in _parts(file):
        stat = path.stat()
        stamp += [str(path.absolute()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
        stamp += [stat.st_ino]
    return stamp


def _newest_ns(file: FoundFile) -> int:
    stats = [path.stat() for path in _parts(file)]
    return max(max(stat.st_mtime_ns, stat.st_ctime_ns) for stat in stats)


def _digest(file: FoundFile, strict: bool) -> str:
    sha = hashlib.sha256()
    for path in _parts(file):
        decoder = codecs.getincrementaldecoder("utf-8")()
        with opened(path) as source:
            more = True
            while more:
                block = source.read(_BLOCK_BYTES)
                more = bool(block)
                sha.update(block)
                try:
                    if file.kind == "text":
                        decoder.decode(block, final=not more)
                except UnicodeDecodeError as error:
                    if strict:
                        raise not_utf8(path, error, source.tell()) from error
                    return ""
    return sha.hexdigest()
