"""Read one file of a corpus as text, a piece at a time, so that no file need fit in memory.

Every fault of the input is a ``DataError`` that names the file, and the line, row or byte in it.
This is the boundary file of tables: what reads them takes a second to import, on every rank, and
neither text nor JSON Lines nor tokens that lie in the cache need it.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from hecate.data.records import Form, Record
from hecate.errors import DataError

PIECE_CHARACTERS = 1 << 18
"""The longest stretch of a document that is tokenised as one; longer ones are cut at line ends."""

RecordKind = Literal["jsonl", "parquet", "dataset"]


@dataclass(frozen=True)
class TextPiece:
    """A stretch of one document, and how many bytes of its file were read for it."""

    text: str
    ends_document: bool
    source_bytes: int


def read_text(path: Path, start: int, end: int) -> Iterator[TextPiece]:
    """Bytes ``start`` to ``end`` of a UTF-8 file as one document, line ends as they are."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    carried = ""
    with opened(path) as file:
        file.seek(start)
        left = end - start
        while left:
            block = file.read(min(PIECE_CHARACTERS, left))
            if not block:
                raise DataError(f"{path} became shorter while it was read", fix="run again")
            left -= len(block)
            try:
                text = carried + decoder.decode(block, final=not left)
            except UnicodeDecodeError as error:
                raise not_utf8(path, error, file.tell()) from error
            cut = len(text) if not left else text.rfind("\n") + 1 or len(text)
            carried = text[cut:]
            yield TextPiece(text[:cut], not left, len(block))


def read_records(kind: RecordKind, path: Path, form: Form) -> Iterator[Record]:
    """The records of a JSONL file, a Parquet file or a saved ``datasets`` split, in order."""
    if kind == "jsonl":
        return _read_jsonl(path, form)
    from hecate.data.tables import read_dataset, read_parquet

    return read_parquet(path, form) if kind == "parquet" else read_dataset(path, form)


def pieces_of(record: Record, longest: int = PIECE_CHARACTERS) -> Iterator[TextPiece]:
    """The record as pieces of up to ``longest`` characters, cut at line ends if there are any."""
    text, start, source_bytes = record.text, 0, record.source_bytes
    while len(text) - start > longest:
        limit = start + longest
        cut = text.rfind("\n", start, limit) + 1 or limit
        yield TextPiece(text[start:cut], False, source_bytes)
        start, source_bytes = cut, 0
    yield TextPiece(text[start:], True, source_bytes)


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The file, open for reading; what the system refuses is a ``DataError``."""
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise DataError(
            f"cannot read {path}", got=error.strerror or str(error), fix="check its permissions"
        ) from error


def not_utf8(path: Path, error: UnicodeDecodeError, read_bytes: int) -> DataError:
    """The error for a file that is not UTF-8; ``read_bytes`` is where its reading stands."""
    position = read_bytes - len(error.object) + error.start
    return DataError(
        f"{path} is not UTF-8 text",
        got=f"byte 0x{error.object[error.start]:02x} at offset {position} ({error.reason})",
        expected="text in UTF-8",
        fix="convert it (iconv -t UTF-8) or take it out of data.path",
    )


def _read_jsonl(path: Path, form: Form) -> Iterator[Record]:
    with opened(path) as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}:{number}"
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if not line.strip():
                continue
            try:
                value = json.loads(line.decode("utf-8"))
            except (ValueError, RecursionError) as error:
                raise DataError(
                    f"{where} is not a line of JSON",
                    got=f"{error}: {line[:60]!r}",
                    expected='one object on each line, such as {"text": "..."}',
                    fix="mend or delete that line; the last line of a broken download is often cut",
                ) from error
            if not isinstance(value, dict):
                raise DataError(
                    f"{where} is not a JSON object",
                    got=type(value).__name__,
                    expected='an object such as {"text": "..."}',
                    fix="mend or delete that line",
                )
            form.fields(list(value), where)
            yield form.record(value, where, len(line))
