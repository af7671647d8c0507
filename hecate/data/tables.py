"""Read one table of a corpus, a Parquet file or a saved ``datasets`` split, as records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet

from hecate.data.records import Form, Record
from hecate.errors import DataError

_ROWS = 1000


def read_parquet(path: Path, form: Form) -> Iterator[Record]:
    """The rows of a Parquet file, in order. Raises ``DataError``."""
    with _table_errors(path, "a Parquet file"), pyarrow.parquet.ParquetFile(path) as table:
        fields = form.fields(table.schema_arrow.names, str(path))
        row, size, rows = 0, path.stat().st_size, max(1, table.metadata.num_rows)
        for batch in table.iter_batches(batch_size=_ROWS, columns=list(fields)):
            columns = {name: batch.column(name).to_pylist() for name in fields}
            yield from _rows(columns, form, path, row, size / rows)
            row += batch.num_rows


def read_dataset(path: Path, form: Form) -> Iterator[Record]:
    """The rows of a split that ``datasets`` saved, in order. Raises ``DataError``."""
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
