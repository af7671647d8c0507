"""Reports: the JSON object's keys, files that are whole or absent, the summary at the end."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from hecate.bench import BENCHES, Report, document, render, write_json
from hecate.bench.report import show
from hecate.errors import StorageError

REPORT = Report(
    bench="toy",
    settings={"seed": 1},
    columns={"name": "name", "rate": "rate"},
    rows=(
        {"name": "measured", "rate": 12345.6, "hidden": [1, 2]},
        {"name": "computed", "rate": 0.25, "simulated": True},
        {"name": "absent"},
    ),
    summary={"ratio": 1.25, "worst": 0.5},
    notes=("a sentence",),
)


def rendered() -> str:
    out = io.StringIO()
    render(REPORT, Console(file=out, width=100))
    return out.getvalue()


def test_the_document_has_exactly_the_published_keys() -> None:
    content = document(REPORT, commit="abc", machine={"cores": 2})
    assert list(content) == ["bench", "commit", "machine", "settings", "rows", "summary"]
    assert content["rows"] == [dict(row) for row in REPORT.rows]
    assert json.loads(json.dumps(content)) == content


def test_the_table_says_what_is_simulated_and_hides_what_has_no_column() -> None:
    lines = rendered().splitlines()
    (simulated,) = [line for line in lines if "computed" in line]
    assert "(simulated)" in simulated
    assert not any("(simulated)" in line for line in lines if "measured" in line)
    assert "hidden" not in rendered()


def test_a_row_is_a_line_where_there_is_no_terminal() -> None:
    row = {f"column {n}": "word " * 5 for n in range(8)}
    wide = Report("toy", {}, {key: key for key in row}, (row,), {})
    out = io.StringIO()
    render(wide, Console(file=out, width=80))
    assert sum("word" in line for line in out.getvalue().splitlines()) == 1


def test_the_summary_comes_last() -> None:
    lines = [line.strip() for line in rendered().splitlines() if line.strip()]
    assert [line.split() for line in lines[-2:]] == [["ratio", "1.25"], ["worst", "0.5"]]
    assert lines.index("- a sentence") < lines.index("toy: summary")


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    target = tmp_path / "new folder" / "out.json"
    write_json(target, {"a": 1})
    assert json.loads(target.read_text()) == {"a": 1}
    with pytest.raises(TypeError):
        write_json(target, {"a": object()})
    assert json.loads(target.read_text()) == {"a": 1}
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        write_json(blocked / "out.json", {})
    assert {path.name for path in tmp_path.iterdir()} == {"new folder", "file"}


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), (True, "yes"), (12345.6, "12,346"), (0.123456, "0.1235"), (4096, "4,096")],
)
def test_cells(value: bool | float | None, text: str) -> None:
    assert show(value) == text


def test_train_is_a_benchmark() -> None:
    assert "train" in BENCHES
