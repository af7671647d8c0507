"""The example of a training loop of one's own, as the README tells to start it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from jobs import finish

ROOT = Path(__file__).parents[2]


def test_the_example_learns_on_two_processes(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node=2", str(ROOT / "launch" / "own_loop.py")),
        ],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    done = finish(process)
    assert done.returncode == 0, done.stderr
    losses = [float(text) for text in re.findall(r"loss (\S+)", done.stdout)]
    assert len(losses) == 20
    assert 4.0 < losses[0] < 4.4  # ln(64) = 4.16: every token is as likely as any other
    assert max(losses[-3:]) < 1.2  # 0.73 is all that can be known
