"""torchrun starts ranks again: they find each other, and nothing of the ranks before them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from patience import PATIENCE_S

RANK = """
import os, signal, time
import torch, torch.distributed as dist
from hecate.mesh import MeshConfig, open_mesh

rank, start = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
if start and rank == 0:
    time.sleep(2)  # so that the other one looks for this rank before it is there
with open_mesh(MeshConfig(device="cpu", timeout_s=30)) as ctx:
    if not start and rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    total = torch.ones(1)
    dist.all_reduce(total, group=ctx.groups.control)
    print(f"rank {rank} of start {start}: {total.item():.0f} ranks", flush=True)
"""


@pytest.mark.slow
def test_ranks_that_are_started_again_meet_at_once(tmp_path: Path) -> None:
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    done = subprocess.run(
        [sys.executable, "-m", *launcher, str(script)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        assert f"rank {rank} of start 1: 2 ranks" in done.stdout
