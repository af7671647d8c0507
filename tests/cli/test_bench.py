"""``hecate bench`` as a user misspells it; what the benchmarks find is tested beside them."""

from __future__ import annotations

import pytest

from hecate.cli.app import main


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["curvs"], "did you mean curves?"),
        (["curves", "--only", "shadowin"], "did you mean shadowing?"),
        (["planner", "--only", "fssdp"], "leave out --only"),
        (["train", "--only", "sfd"], "did you mean sft?"),
        (["serve", "--only", "stac"], "did you mean stack?"),
        (["all", "--only", "fssdp"], "leave out --only"),
    ],
)
def test_bad_input_is_one_message(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *words]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ")
    assert expected in shown.err
    assert not shown.out
