"""``hecate simulate`` as a user runs it."""

import json
from pathlib import Path

import pytest

from hecate.cli.app import main
from hecate.cli.simulate import parse_devices
from hecate.errors import ConfigError

ARGUMENTS = ["simulate", "paper-a", "bert-moe", "--devices", "8"]


def test_every_row_says_that_it_is_simulated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, picture = tmp_path / "out.json", tmp_path / "out.svg"
    words = ["--policies", "expert_parallel,fssdp_paper", "--json", str(file)]
    words += ["--picture", str(picture)]
    assert main([*ARGUMENTS, *words]) == 0
    rows = json.loads(file.read_text())["rows"]
    assert [row["policy"] for row in rows] == ["expert_parallel", "fssdp_paper"]
    assert all(row["simulated"] is True and row["assumed"] for row in rows)
    assert rows[0]["speedup_vs_ep"] == 1
    assert "Simulated: paper-a" in picture.read_text()
    assert capsys.readouterr().out.count("(simulated)") == 2


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["simulate", "paper-c", "bert-moe"], "did you mean paper-"),
        (["simulate", "paper-a", "bert-mo"], "did you mean bert-moe?"),
        ([*ARGUMENTS, "--policies", "fsdpp"], "did you mean fsdp?"),
        ([*ARGUMENTS, "--set", "loads.skw=1"], "did you mean loads.skew?"),
        (["simulate", "paper-a", "bert-moe", "--devices", "x"], "--devices"),
    ],
)
def test_bad_input_is_one_message(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and expected in message
    assert "Traceback" not in message


def test_devices() -> None:
    assert parse_devices("8, 32") == [8, 32]
    assert parse_devices("8-64") == [8, 16, 32, 64]
    with pytest.raises(ConfigError):
        parse_devices("8-")
