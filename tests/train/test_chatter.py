"""A run's terminal is calm: libraries warn once, and one line moves."""

from __future__ import annotations

import io
import logging
import re
import sys
import warnings
from contextlib import redirect_stderr
from pathlib import Path

import pytest
from jobs import set_, write_config, write_corpus
from terminals import on_a_terminal, screen

from hecate.train.chatter import warned_once


def chatter() -> None:
    """What libraries say over and over."""
    theirs, ours = logging.getLogger("library.toy"), logging.getLogger("hecate.train.toy")
    for step in range(3):
        warnings.warn(f"deprecated\n  since {step}", FutureWarning, stacklevel=1)
        theirs.warning("step %d: theirs", step)
        ours.warning("step %d: ours", step)
        theirs.error("step %d: an error", step)
    warnings.warn("another one", UserWarning, stacklevel=1)


@pytest.mark.parametrize("rank", [0, 1])
def test_libraries_warn_once_and_on_one_rank(rank: int) -> None:
    root, handler = logging.getLogger(), logging.StreamHandler(sys.stderr)
    root.addHandler(handler)
    said = io.StringIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            with warned_once(rank), redirect_stderr(said):
                chatter()
        assert handler.stream is sys.stderr and not handler.filters, "all is as it was"
    finally:
        root.removeHandler(handler)
    lines = [re.sub(r" \(.*:\d+\)$", "", line) for line in said.getvalue().splitlines()]
    errors = [f"step {step}: an error" for step in range(3)]
    own = [f"step {step}: ours" for step in range(3)]
    once = [] if rank else ["FutureWarning: deprecated since 0", "step 0: theirs"]
    last = [] if rank else ["UserWarning: another one"]
    first = [*once, own[0], errors[0]]
    assert lines == [*first, own[1], errors[1], own[2], errors[2], *last]


def test_a_run_on_a_terminal_leaves_one_line_of_progress(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus")
    toy = write_config(tmp_path / "toy.yaml")
    changes = set_(train__steps=12, logging__sinks="[console, jsonl]")
    command = [sys.executable, "-m", "hecate", "train", str(toy), *changes]
    code, text = on_a_terminal(command, width=100, cwd=tmp_path)
    assert code == 0, text
    lines = screen(text)
    assert len(set(lines)) == len(lines), "nothing is said twice"
    (progress,) = [line for line in lines if "━" in line and line.startswith("step ")]
    assert re.match(r"step 12/12 ━+ +100% loss \d\.\d{4}  .*tok/s", progress)
    assert "step 6/12" in text and re.search(r"left 0:00:\d\d", text), "it moved"
    (held_out,) = [line for line in lines if "held out:" in line]
    assert held_out.startswith("step 12/12  held out:  loss ")
    assert lines[-1] == "the run lies in runs/toy"
