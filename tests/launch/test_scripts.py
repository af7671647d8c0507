"""Every shell script is clean under shellcheck, every Docker file under hadolint."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def tracked(*patterns: str) -> list[Path]:
    return sorted(path for pattern in patterns for path in ROOT.glob(pattern))


SHELL = tracked(".ci/run", "launch/**/*.sh", "launch/**/*.sbatch", "tests/**/*.sh")
DOCKER = tracked("launch/docker/*.Dockerfile")


@pytest.mark.parametrize(
    ("linter", "paths"), [("shellcheck", SHELL), ("hadolint", DOCKER)], ids=["shell", "docker"]
)
def test_nothing_is_found(linter: str, paths: list[Path]) -> None:
    beside_python = str(Path(sys.executable).parent)
    program = shutil.which(linter, path=os.pathsep.join([beside_python, os.environ["PATH"]]))
    assert program, f"{linter} comes with the extra dev"
    assert len(paths) >= 2
    done = subprocess.run([program, *paths], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
