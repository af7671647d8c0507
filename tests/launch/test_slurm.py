"""``launch/slurm/train.sbatch`` run as Slurm runs it, with its two commands standing in.

``srun`` here does of its work what the script relies on: a task on each node, with that node's
number, every signal handed to every task, the highest exit code. ``scontrol`` answers the one
question and writes down what it was told to do. All else is real: the script, torchrun, training.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from jobs import finish, metrics, set_, wait_for_step, write_config, write_corpus

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "launch" / "slurm" / "train.sbatch"
STEPS = 60

SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
tasks=()
for ((node = 0; node < SLURM_JOB_NUM_NODES; node++)); do
    SLURM_NODEID=$node SLURM_PROCID=$node SLURM_LOCALID=0 "$@" &
    tasks+=("$!")
done
for name in USR1 TERM; do
    trap 'kill -'"$name"' "${tasks[@]}" 2>/dev/null' "$name"
done
highest=0
for task in "${tasks[@]}"; do
    code=0
    wait "$task" || code=$?
    while kill -0 "$task" 2>/dev/null; do
        code=0
        wait "$task" || code=$?
    done
    ((code > highest)) && highest=$code
done
exit "$highest"
"""
SCONTROL = """#!/usr/bin/env bash
if [[ "$1 $2" == "show hostnames" ]]; then tr , '\\n' <<<"$3"; else echo "$*" >>"$TOLD"; fi
"""


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """The environment of a batch script of two nodes, which both are this machine."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    return {
        **os.environ,
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "TOLD": str(tmp_path / "told"),
        "HECATE_DIR": str(ROOT),
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NODELIST": "localhost,localhost",
        "SLURM_JOB_NUM_NODES": "2",
        "MASTER_PORT": port,
        "LOCAL_ADDR": "127.0.0.1",
        "NPROC_PER_NODE": "1",
        "OMP_NUM_THREADS": "1",
    }


def submit(cluster: dict[str, str], *words: str, cwd: Path) -> subprocess.Popen:
    return subprocess.Popen(
        ["bash", SCRIPT, *words],
        cwd=cwd,
        env=cluster,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
def test_the_announced_time_limit_saves_and_queues_again_and_the_next_job_ends_the_run(
    tmp_path: Path, cluster: dict[str, str]
) -> None:
    write_corpus(tmp_path / "corpus")
    write_config(tmp_path / "toy.yaml")
    words = ("toy.yaml", *set_(train__steps=STEPS, checkpoint__every=1000))
    run, told = tmp_path / "runs" / "toy", tmp_path / "told"

    job = submit(cluster, *words, cwd=tmp_path)
    wait_for_step(run, 3, job)
    job.send_signal(signal.SIGUSR1)  # as --signal=B: says, to the batch script alone
    done = finish(job)
    assert done.returncode == 0, done.stderr
    stopped = metrics(run)[-1]["step"]
    assert 3 <= stopped < STEPS
    assert f"stopped on request after step {stopped} of {STEPS}" in done.stdout
    assert told.read_text() == "requeue 4711\n"

    done = finish(submit(cluster, *words, cwd=tmp_path))
    assert done.returncode == 0, done.stderr
    assert [line["step"] for line in metrics(run)] == list(range(1, STEPS + 1))
    assert told.read_text() == "requeue 4711\n"


def options_of(script: str) -> dict[str, str]:
    """What ``#SBATCH`` lines ask for."""
    return dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", script, re.MULTILINE))


def test_slurm_is_asked_for_what_the_script_relies_on() -> None:
    text = SCRIPT.read_text()
    options = options_of(text)
    assert options["ntasks-per-node"] == "1"  # one torchrun a node
    assert options["signal"].startswith("B:USR1@") and "trap 'told=1" in text
    assert "requeue" in options and options["open-mode"] == "append"
    # Slurm reads its options up to the first command.
    commands = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert text.index(commands[0]) > text.rindex("#SBATCH")
