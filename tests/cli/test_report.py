"""``hecate report`` as a user runs it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from jobs import set_, succeed, write_config, write_corpus
from patience import PATIENCE_S
from run_folders import write_run

from hecate.cli.app import main


def test_it_says_what_it_wrote_and_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run")
    (run / "starts.jsonl").unlink()
    out = tmp_path / "page.html"
    assert main(["report", str(run), "--out", str(out)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"wrote {out}, 0.0") and second.startswith("- The run kept no starts")
    assert out.read_text().startswith("<!doctype html>")


@pytest.mark.parametrize("words", [["nowhere"], ["{run}", "--out", "{run}/config.yaml/x.html"]])
def test_what_cannot_be_drawn_or_written_ends_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    run = write_run(tmp_path / "run")
    assert main(["report", *(word.format(run=run) for word in words)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("error:") == 1 and "fix:" in error


def test_a_report_does_not_wait_for_torch(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    code = (
        f"import sys; from hecate.cli import main; code = main(['report', {str(run)!r}]);"
        "assert not {'torch', 'transformers', 'wandb'} & set(sys.modules); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_run_that_was_trained_and_taken_up_is_drawn(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", files=4)
    write_config(tmp_path / "toy.yaml")
    succeed("train", "toy.yaml", *set_(train__steps=2), cwd=tmp_path)
    succeed("train", "toy.yaml", "--resume", "auto", cwd=tmp_path)
    said = succeed("report", "runs/toy", cwd=tmp_path)
    assert said.startswith("wrote runs/toy/report.html, ") and "\n-" not in said
    text = (tmp_path / "runs" / "toy" / "report.html").read_text()
    assert "Finished: 4 steps" in text
    # How long it lay between the two commands is told as well, where that was a second or more.
    assert re.search(r"taken up again after step 2 on 1 rank(; [^<]+ without training)? <", text)
    data = json.loads(text.split('id="data">')[1].split("</script>")[0])
    assert data["charts"]["loss"]["curves"][0]["x"] == [1, 2, 3, 4]
    assert data["experts"]["edges"] == [0, 1, 2, 3, 4] and data["experts"]["num_experts"] == [4, 4]
    rows = {each["key"]: len(each["rows"]) for each in data["layers"]["maps"]}
    assert {"load/ranks_max_over_mean", "load/computed_max_over_mean"} < set(rows)
    assert set(rows.values()) == {2}
    assert {"forward", "experts", "backward"} <= set(data["areas"]["names"])
