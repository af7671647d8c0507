"""Read one file of a corpus as text, a piece at a time, so that no file need fit in memory.

Every fault of the input is a ``DataError`` that names the file, and the line, row or byte in it.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import datasets
import pyarrow
import pyarrow.parquet

from hecate.data.records import Form, Record
from hecate.errors import DataError

PIECE_CHARACTERS = 1 << 18
"""The longest stretch of a document that is tokenised as one; longer ones are cut at line ends."""

_ROWS = 1000

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
    return _read_parquet(path, form) if kind == "parquet" else _read_dataset(path, form)


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


def _read_parquet(path: Path, form: Form) -> Iterator[Record]:
    with _table_errors(path, "a Parquet file"), pyarrow.parquet.ParquetFile(path) as table:
        fields = form.fields(table.schema_arrow.names, str(path))
        row, size, rows = 0, path.stat().st_size, max(1, table.metadata.num_rows)
        for batch in table.iter_batches(batch_size=_ROWS, columns=list(fields)):
            columns = {name: batch.column(name).to_pylist() for name in fields}
            yield from _rows(columns, form, path, row, size / rows)
            row += batch.num_rows


def _read_dataset(path: Path, form: Form) -> Iterator[Record]:
    with _table_errors(path, "a split saved by datasets' save_to_disk"):
        table = datasets.load_from_disk(str(path))
        fields = form.fields(table.column_names, str(path))
        size = sum(file.stat().st_size for file in path.glob("*.arrow"))
        plain = table.with_format(None).select_columns(list(fields))
        for row in range(0, len(plain), _ROWS):
            columns = plain[row : row + _ROWS]
            yield from _rows(columns, form, path, row, size / len(plain))


def _rows(
    columns: Mapping[str, Sequence[object]],
    form: Form,
    path: Path,
    first: int,
    row_bytes: float,
) -> Iterator[Record]:
    for offset, values in enumerate(zip(*columns.values(), strict=True)):
        row = first + offset
        where = f"{path}, row {row}"
        share = int((row + 1) * row_bytes) - int(row * row_bytes)
        yield form.record(dict(zip(columns, values, strict=True)), where, share)


@contextmanager
def _table_errors(path: Path, expected: str) -> Iterator[None]:
    try:
        yield
    except (pyarrow.ArrowException, OSError, ValueError, KeyError) as error:
        raise DataError(
            f"cannot read {path}",
            got=(str(error).splitlines() or [type(error).__name__])[0],
            expected=expected,
            fix="save or download it again",
        ) from error
