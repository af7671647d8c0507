"""The command line: what is listed, what is refused, and what the process ends with."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from patience import PATIENCE_S

from hecate.cli.app import COMMANDS, OTHER_RANKS_WAIT_S, main, outcome
from hecate.errors import CollectiveFailure, ConfigError

DEMO = Path(__file__).parents[2] / "configs" / "train" / "demo.yaml"


def raising(error: BaseException) -> int:
    def action() -> None:
        raise error

    return outcome(action, {})


def test_help_lists_every_command_without_loading_torch() -> None:
    code = (
        "import sys; from hecate.cli import main; code = main(['--help']);"
        "assert not {'torch', 'transformers'} & set(sys.modules); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr
    for name in COMMANDS:
        assert re.search(rf"\b{name}\b", done.stdout)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    assert f"hecate {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tran", "x"], "Did you mean 'train'"),
        (["train"], "CONFIG"),
        (["train", "x.yaml", "--stes", "3"], "--stes"),
        (["generate", "x", "prompt", "--max-tokens", "many"], "--max-tokens"),
        (["--fast"], "--fast"),
    ],
)
def test_bad_words_end_with_2(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["train", "no-such.yaml"],
        ["train", str(DEMO), "--set", "train.stepps=3"],
        ["train", str(DEMO), "--set", "train.steps=many"],
        ["eval", "no-such-run"],
        ["export", "no-such-run", "out"],
        ["generate", "no-such-run", "hello"],
    ],
)
def test_bad_input_is_one_message_without_traceback(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    shown = capfd.readouterr()
    assert shown.err.startswith("error: ") and shown.err.count("error: ") == 1
    assert "Traceback" not in shown.err and not shown.out
    assert list(tmp_path.iterdir()) == []


def test_print_config_shows_origins(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(DEMO), "--set", "train.steps=7", "--print-config"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^train\.steps: 7 +# --set$", shown, re.MULTILINE)
    assert re.search(r"^model\.family: qwen3_moe +# demo\.yaml:\d+$", shown, re.MULTILINE)
    assert re.search(r"^mesh\.device: auto +# default$", shown, re.MULTILINE)


def test_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(lambda: None, {}) == 0
    assert raising(SystemExit(3)) == 3
    assert raising(SystemExit()) == 0
    assert raising(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == ""
    assert raising(ConfigError("no such key", got="a", expected="b", fix="c")) == 2
    assert capsys.readouterr().err == (
        "error: no such key\n  got:      a\n  expected: b\n  fix:      c\n"
    )
    assert raising(CollectiveFailure("rank 1 died")) == 1
    assert capsys.readouterr().err == "error: rank 1 died\n"
    assert raising(ZeroDivisionError("ours")) == 1
    shown = capsys.readouterr().err
    assert "Traceback" in shown and "ZeroDivisionError: ours" in shown
    assert "this is a bug in Hecate" in shown


def test_a_rank_says_which_and_tells_its_launcher(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def action() -> None:
        raise CollectiveFailure("a peer is gone")

    file = tmp_path / "error.json"
    assert outcome(action, {"RANK": "2", "TORCHELASTIC_ERROR_FILE": str(file)}) == 1
    message = "error on rank 2: a peer is gone"
    assert capsys.readouterr().err == message + "\n"
    assert json.loads(file.read_text())["message"]["message"] == message


def test_other_ranks_leave_the_first_word_to_rank_0() -> None:
    def action() -> None:
        raise ConfigError("found by every rank")

    began = time.monotonic()
    assert outcome(action, {"RANK": "0"}) == 2
    assert time.monotonic() - began < OTHER_RANKS_WAIT_S / 2
    began = time.monotonic()
    assert outcome(action, {"RANK": "1"}) == 2
    assert time.monotonic() - began >= OTHER_RANKS_WAIT_S


def test_module_entry() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hecate", "tran"], capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 2 and "No such command" in done.stderr
