"""Find a corpus, digest it, and hold out a part of it that is never trained on.

Several files are split by file: whole files are held out, chosen by a hash of their names until
``held_out`` of the bytes is reached, so that adding text moves no file between the splits. A
single file of text is cut once, near its end. One file of records (or several, each larger than
the share to hold out) is split by a hash of each document, so that equal documents stay together.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hecate.data.config import STDLIB, DataConfig
from hecate.data.conversations import ChatForm
from hecate.data.discovery import KINDS, RECORDS, FoundFile, digest_files, find_files
from hecate.data.readers import RecordKind, opened, pieces_of, read_records, read_text
from hecate.data.records import Form, Record, TextForm
from hecate.errors import DataError
from hecate.folders import cache_folder

Split = Literal["train", "held_out"]
SPLITS: tuple[Split, Split] = ("train", "held_out")

_LINE_BYTES = 1 << 16
_CONTINUATION = bytes(range(0x80, 0xC0))
"""Bytes that go on with a character of UTF-8 rather than begin one."""


@dataclass(frozen=True)
class Source:
    """A stretch of one file and the split of its documents ("by_document": each by its hash)."""

    path: Path
    kind: Literal["text", RecordKind]
    split: Literal["train", "held_out", "by_document"]
    start: int
    end: int
    digest: str

    @property
    def size_bytes(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class Piece:
    """A stretch of one document of a split, and how many bytes of its file were read for it."""

    split: Split
    text: str
    ends_document: bool
    source_bytes: int


@dataclass(frozen=True)
class Corpus:
    """The documents of both splits, read lazily and always in the same order.

    ``form`` is what records are read as. ``digest`` names the text and the way it is split, not
    where it lies. ``max_record_bytes`` (0: no limit) is how much text is read of each file of
    records.
    """

    path: str
    sources: tuple[Source, ...]
    held_out: float
    form: Form
    max_record_bytes: int
    digest: str

    @property
    def size_bytes(self) -> int:
        return sum(source.size_bytes for source in self.sources)

    def pieces(self, splits: Sequence[Split] = SPLITS) -> Iterator[Piece]:
        """Every document of ``splits``, whole where it is short and in pieces where it is long.

        Raises ``DataError`` for text that cannot be read.
        """
        for source in self.sources:
            if source.kind != "text":
                for split, record in self._records(source, source.kind, splits):
                    for piece in pieces_of(record):
                        yield Piece(split, piece.text, piece.ends_document, piece.source_bytes)
            elif source.split != "by_document" and source.split in splits:
                for piece in read_text(source.path, source.start, source.end):
                    yield Piece(source.split, piece.text, piece.ends_document, piece.source_bytes)

    def records(self, splits: Sequence[Split] = SPLITS) -> Iterator[tuple[Split, Record]]:
        """Every record of ``splits`` that is not empty. Raises ``DataError`` as ``pieces`` does."""
        for source in self.sources:
            if source.kind != "text":
                yield from self._records(source, source.kind, splits)

    def _records(
        self, source: Source, kind: RecordKind, splits: Sequence[Split]
    ) -> Iterator[tuple[Split, Record]]:
        if source.split != "by_document" and source.split not in splits:
            return
        read_bytes = 0
        for record in read_records(kind, source.path, self.form):
            text = record.text.encode("utf-8")
            read_bytes += len(text)
            if 0 < self.max_record_bytes < read_bytes:
                return
            split = self._split_of(text) if source.split == "by_document" else source.split
            if text and split in splits:
                yield split, record

    def _split_of(self, text: bytes) -> Split:
        share = int.from_bytes(hashlib.sha256(text).digest()[:8], "big") / 2**64
        return "held_out" if share < self.held_out else "train"


def load_corpus(config: DataConfig) -> Corpus:
    """The corpus that ``config`` describes: its files found, digested and split, none yet parsed.

    Files that are empty, or the same as an earlier one, are left out. Raises ``DataError``.
    """
    form = _form(config)
    files = find_files(config.path, RECORDS if config.kind == "chat" else KINDS)
    given = any(file.split for file in files)  # the corpus comes with a split of its own
    several = len(files) > 1
    if config.max_bytes and several and not given:
        files = _chosen(files, config.max_bytes)
        if not files:
            raise DataError(
                f"every file of {config.path} is larger than data.max_bytes",
                expected=f"at least one file of at most {config.max_bytes:,} bytes",
                fix="raise data.max_bytes, or set it to 0 to read everything",
            )
    digests = digest_files(files, cache_folder(config.cache), strict=config.path != STDLIB)
    kept: list[tuple[FoundFile, str]] = []
    seen = {""}
    for file, digest in zip(files, digests, strict=True):
        if digest not in seen:
            kept.append((file, digest))
            seen.add(digest)
    if len(kept) == 1 and kept[0][0].kind == "text":
        sources = _cut(*kept[0], config)
    else:
        sources = _by_file(kept, config)
    records_limit = 0 if several and not given else config.max_bytes
    return Corpus(
        path=config.path,
        sources=sources,
        held_out=config.held_out,
        form=form,
        max_record_bytes=records_limit,
        digest=_digest(sources, config, form, records_limit),
    )


def _form(config: DataConfig) -> Form:
    if config.kind == "text":
        return TextForm(config.text_fields)
    fields = config.chat.fields
    return ChatForm(fields.user, fields.assistant, fields.system, config.chat.system)


def _by_file(kept: list[tuple[FoundFile, str]], config: DataConfig) -> tuple[Source, ...]:
    files = [file for file, _ in kept]
    held_out = {file for file in files if file.split == "held_out"}
    by_document = False
    if not any(file.split for file in files):
        target = config.held_out * sum(file.size_bytes for file in files)
        held_out = set(_chosen(files, target))
        by_document = not held_out and all(file.kind != "text" for file in files)
        if not held_out and not by_document:
            held_out = {min(files, key=lambda file: (file.size_bytes, file.name))}
    sources = []
    for file, digest in kept:
        split: Split = "held_out" if file in held_out else "train"
        sources.append(
            Source(
                path=file.path,
                kind=file.kind,
                split="by_document" if by_document else split,
                start=0,
                end=file.size_bytes,
                digest=digest,
            )
        )
    return tuple(sources)


def _chosen(files: Sequence[FoundFile], most_bytes: float) -> list[FoundFile]:
    """Files of at most ``most_bytes`` together, a sample by the hash of their names, in order."""
    chosen: set[FoundFile] = set()
    left = most_bytes
    for file in sorted(files, key=lambda f: hashlib.sha256(f.name.encode()).digest()):
        if file.size_bytes <= left:
            chosen.add(file)
            left -= file.size_bytes
    return [file for file in files if file in chosen]


def _cut(file: FoundFile, digest: str, config: DataConfig) -> tuple[Source, ...]:
    """The beginning of one file of text to train on, the rest held out; both end with a line."""
    end = file.size_bytes
    if 0 < config.max_bytes < end:
        end = _boundary(file.path, config.max_bytes, file.size_bytes)
    cut = _boundary(file.path, int(end * (1 - config.held_out)), end)
    if not 0 < cut < end:
        raise DataError(
            f"{file.path} is too small to hold a part of it out",
            got=f"{file.size_bytes} bytes",
            expected="at least a few lines",
            fix="bring more text, or raise data.held_out",
        )
    train = Source(file.path, "text", "train", 0, cut, digest)
    return train, Source(file.path, "text", "held_out", cut, end, digest)


def _boundary(path: Path, offset: int, end: int) -> int:
    """The first start of a line from ``offset`` on, or of a character if no line ends near."""
    offset = max(1, offset)
    with opened(path) as file:
        file.seek(offset - 1)
        block = file.read(min(_LINE_BYTES, end - offset + 1))
    line = block.find(b"\n", 0, end - offset)  # not the last byte: some text must follow
    if line >= 0:
        return offset + line
    rest = block[1:]
    return offset + len(rest) - len(rest.lstrip(_CONTINUATION))


def _digest(sources: Sequence[Source], config: DataConfig, form: Form, records_limit: int) -> str:
    parts: list[object] = [[s.kind, s.split, s.start, s.end, s.digest] for s in sources]
    if any(source.kind != "text" for source in sources):
        parts += [form.names if isinstance(form, TextForm) else repr(form), records_limit]
    if any(source.split == "by_document" for source in sources):
        parts.append(config.held_out)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
