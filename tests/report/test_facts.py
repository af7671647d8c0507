"""The figures at the head, and what is said to be missing."""

from pathlib import Path

import pytest
from run_folders import write_loads, write_metrics, write_run

from hecate.report.build import read_run, report
from hecate.report.curves import Training
from hecate.report.facts import figures, headline, moment, short, size
from hecate.report.spent import time_spent


def shown(folder: Path) -> dict[str, tuple[str, str]]:
    run = read_run(folder)
    training = Training.of(run.metrics, run.starts)
    spent = time_spent(run.metrics, run.starts)
    return {each.name: (each.value, each.beside) for each in figures(run, training, spent)}


def test_the_figures_of_a_finished_run(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    assert headline(read_run(run)) == "Finished: 30 steps, ended on 2027-01-15 08:00 UTC."
    found = shown(run)
    assert found["Loss"] == ("4.667", "from 6.000 in the first line")
    assert found["Held out"] == ("4.500", "1.250 bits per byte")
    assert found["Tokens per second"] == ("1,020", "median; 50% of the devices' best")
    # Layers stand at 1.5, 1.6, 1.7, 1.8 before and at 1 after.
    assert found["Busiest rank over mean"][0] == "1.65\u00a0→\u00a01.00"
    assert found["Peak memory"] == ("2.0 GiB", "host, rank 0")
    # 30 x 8 x 64 tokens; the first line's 7 s of phases, 16 s to the third, 5 s to the evaluation.
    assert found["Steps"] == ("30", "15.4 k tokens, 28 s")


def test_a_run_that_stopped_says_where(tmp_path: Path) -> None:
    run = write_run(tmp_path, steps=20)
    (run / "config.yaml").write_text("name: small\ntrain:\n  steps: 500\n")
    assert headline(read_run(run)).startswith("Stopped, or still going, at step 20 of 500, last")
    assert shown(run)["Steps"][0] == "20 of 500"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ("loads.jsonl", "kept no loads (loads.jsonl): its experts are drawn from the 3 logged"),
        ("metrics.jsonl", "No line of training was logged"),
        ("starts.jsonl", "kept no starts"),
        ("config.yaml", "no readable config.yaml"),
    ],
)
def test_a_file_that_is_not_there_is_named(tmp_path: Path, changed: str, said: str) -> None:
    run = write_run(tmp_path)
    assert report(run).missing == ()
    (run / changed).unlink()
    (found,) = report(run).missing
    assert said in found and said in (run / "report.html").read_text()


def test_a_run_killed_in_the_middle_of_a_line_says_so(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    for name in ("metrics.jsonl", "loads.jsonl"):
        (run / name).write_bytes((run / name).read_bytes()[:-9])
    cut = [each for each in report(run).missing if "is unfinished, as a kill leaves it" in each]
    assert [name for each in cut for name in ("metrics", "loads") if name in each] == [
        "metrics",
        "loads",
    ]


def test_steps_that_were_run_again_and_rubbish_are_counted(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    before = (run / "metrics.jsonl").read_text()
    write_metrics(run, range(20, 41, 10))
    (run / "metrics.jsonl").write_text(f"{before}rubbish\n" + (run / "metrics.jsonl").read_text())
    found = report(run).missing
    assert "1 line of metrics.jsonl cannot be read and is left out." in found
    assert any(each.startswith("2 lines of metrics.jsonl are of steps that") for each in found)


def test_loads_from_some_step_on(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    (run / "loads.jsonl").unlink()
    write_loads(run, range(20, 30))
    assert "Loads were kept from step 21 on." in report(run).missing


def test_sizes_and_moments() -> None:
    assert [size(n) for n in (5, 2048, 3 * 2**30)] == ["5 bytes", "2.0 KiB", "3.0 GiB"]
    assert [short(n) for n in (999, 1500, 2e12)] == ["999", "1.5 k", "2.0 T"]
    assert moment(0.0) == "1970-01-01 00:00 UTC" and moment(1e300) == moment(float("nan")) == ""
