"""A folder in, one file out: what is read, what is refused, how large it becomes."""

import base64
import json
import re
from pathlib import Path

import pytest
from run_folders import write_large, write_run

from hecate.errors import StorageError
from hecate.report import report


def data_of(page: Path) -> dict:
    text = page.read_text(encoding="utf-8")
    return json.loads(re.search(r'id="data">(.*?)</script>', text)[1])


def test_the_default_is_in_the_folder_and_out_is_elsewhere(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    before = {path.name for path in run.iterdir()}
    written = report(run)
    assert written.path == run / "report.html"
    assert written.size_bytes == written.path.stat().st_size < 200_000
    assert {path.name for path in run.iterdir()} == before | {"report.html"}
    elsewhere = report(run, tmp_path / "new" / "page.html")
    assert elsewhere.path.read_text() == written.path.read_text()


def test_every_step_of_a_small_run_is_there(tmp_path: Path) -> None:
    data = data_of(report(write_run(tmp_path)).path)
    assert data["steps"] == [0, 30]
    assert data["charts"]["loss"]["curves"][0]["x"] == [10, 20, 30]
    assert data["charts"]["loss"]["curves"][0]["y"] == [6, 5, 4.6667]
    assert data["charts"]["bytes"]["curves"][0]["y"] == [1e5] * 3
    assert data["layers"]["edges"] == [0, 10, 20, 30]
    assert data["experts"]["edges"] == list(range(31))
    codes = base64.b64decode(data["experts"]["codes"][3])
    assert len(codes) == 30 * 8 and set(codes[::8]) == {0} and 0 not in codes[1:8]


def test_a_large_run_stays_small_and_says_what_was_put_together(tmp_path: Path) -> None:
    write_large(tmp_path, steps=100_000, every=200, layers=61, experts=256)
    written = report(tmp_path)
    assert written.size_bytes < 3_000_000
    text, data = written.path.read_text(), data_of(written.path)
    assert "500 logged lines in 480 points" in text
    assert "a column stands for up to 10 recorded steps and is the mean of 8 of them" in text
    assert [len(data["layers"]["maps"][0]["rows"]), len(data["layers"]["edges"])] == [61, 241]
    assert len(data["experts"]["codes"]) == 61 and len(data["experts"]["edges"]) == 52


def test_a_name_or_a_setting_is_text_and_nothing_else(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    evil = '</script><script>alert("1")</script><img src=x onerror=alert(1)>'
    (run / "config.yaml").write_text(f"name: '{evil}'\ndata:\n  path: '{evil}'\n")
    start = {"step": 0, "time_s": 1.0, "environment": {evil: evil}}
    (run / "starts.jsonl").write_text(json.dumps(start) + "\n")
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 35, "loss": 1.0, "seconds/\ud800": 3.0}) + "\n")
        file.write(json.dumps({"step": 40, "loss": 1.0, evil.replace("/", ""): 3.0}) + "\n")
        file.write(json.dumps({"step": 50, "loss": 1.0, f"seconds/{evil}": 3.0}) + "\n")
    text = report(run).path.read_text()
    assert text.count("<script") == text.count("</script>") == 2
    assert "<img" not in text and 'alert("1")' not in text


def test_a_page_reaches_for_nothing(tmp_path: Path) -> None:
    text = report(write_run(tmp_path)).path.read_text()
    assert "default-src 'none'" in text.replace("&#x27;", "'")
    addresses = set(re.findall(r"[a-z]+://[^\s\"'<]+", text))
    assert addresses == {"http://www.w3.org/2000/svg"}  # a name, not a place
    assert not re.search(r"\s(src|href)=|@import|url\(", text)


@pytest.mark.parametrize("kind", ["nowhere", "empty", "foreign", "file", "cut"])
def test_what_is_no_run_is_one_message(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / kind
    if kind == "file":
        folder.write_text("")
    elif kind != "nowhere":
        folder.mkdir()
    if kind == "foreign":
        (folder / "notes.txt").write_text("")
    if kind == "cut":
        (folder / "metrics.jsonl").write_text('{"step":1')
    with pytest.raises(StorageError) as raised:
        report(folder)
    error = raised.value
    assert str(folder) in error.what and error.got and error.expected and error.fix
    assert not (folder / "report.html").exists()


def test_settings_of_another_version_are_shown_as_they_are(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    (run / "config.yaml").write_text("name: old\ntrain: 7\nlong_gone: {a: [1, 2]}\n")
    text = report(run).path.read_text()
    assert "long_gone: {a: [1, 2]}" in text and "<title>old: training report</title>" in text
    (run / "config.yaml").write_text("a: [")
    assert "There is no readable config.yaml." in report(run).missing
