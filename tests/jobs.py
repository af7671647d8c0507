"""The command line as a user runs it: processes of their own, a small corpus, a toy run."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from ranks import FORKSERVER

TOY: dict[str, Any] = {
    "name": "toy",
    "model": {
        "family": "qwen3_moe",
        "sizes": {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "intermediate_size": 32,
            "moe_intermediate_size": 16,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "max_position_embeddings": 64,
        },
    },
    "data": {
        "path": "corpus",
        "cache": "cache",
        "sequence_tokens": 32,
        "held_out": 0.1,
        "tokenizer": {"vocab_size": 300},
    },
    "train": {"steps": 4, "batch_sequences": 5},
    "checkpoint": {"every": 2},
    "logging": {"every": 1, "sinks": ["jsonl"]},
}
"""A run of a second, in paths relative to the folder that it is started in."""


def write_corpus(folder: Path, *, files: int = 12) -> Path:
    """Text of made-up words in ``files`` files; the same every time."""
    pick = random.Random(0)
    words = ["".join(pick.choices("abcdefghij", k=pick.randint(2, 7))) for _ in range(100)]
    folder.mkdir()
    for number in range(files):
        lines = [" ".join(pick.choices(words, k=9)) for _ in range(60)]
        (folder / f"{number:02}.txt").write_text("\n".join(lines))
    return folder


def write_config(path: Path, config: dict[str, Any] = TOY) -> Path:
    path.write_text(yaml.safe_dump(config))
    return path


def _own_environment() -> dict[str, str]:
    """This process's, less what would tie the job to the Weights & Biases service of a test."""
    return {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}


def start(
    *words: str | Path,
    cwd: Path,
    ranks: int = 0,
    within: Sequence[str] = (),
    **environment: str,
) -> subprocess.Popen:
    """``hecate *words`` as a process of its own, under torchrun where ``ranks`` is given.

    ``within``: a command that becomes the one after it, such as ``nsenter``.
    """
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command = [
        *within,
        sys.executable,
        *(launcher if ranks else []),
        "-m",
        "hecate",
        *map(str, words),
    ]
    return subprocess.Popen(
        command,
        cwd=cwd,
        env={**_own_environment(), "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen, timeout_s: float) -> subprocess.CompletedProcess[str]:
    """What a started process ended with; whatever of it outlives ``timeout_s`` is killed."""
    try:
        out, err = process.communicate(timeout=timeout_s)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def hecate(
    *words: str | Path,
    cwd: Path,
    ranks: int = 0,
    timeout_s: float = 120,
    largest_file_bytes: int = resource.RLIM_INFINITY,
) -> subprocess.CompletedProcess[str]:
    """Run ``hecate *words`` to its end.

    Alone it is forked from a process that has imported torch already, which saves seconds;
    ``largest_file_bytes`` is then the limit on the files that it writes.
    """
    if ranks:
        return finish(start(*words, cwd=cwd, ranks=ranks), timeout_s)
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        arguments = [str(word) for word in words]
        process = FORKSERVER.Process(
            target=_forked, args=(arguments, cwd, out, err, largest_file_bytes), daemon=True
        )
        process.start()
        process.join(timeout_s)
        if process.is_alive():
            process.kill()
            process.join()
        assert process.exitcode is not None
        return subprocess.CompletedProcess(
            arguments, process.exitcode, out.read_text(), err.read_text()
        )


def _forked(arguments: list[str], cwd: Path, out: Path, err: Path, largest_bytes: int) -> None:
    """What ``python -m hecate`` does, in ``cwd`` and into the files ``out`` and ``err``."""
    os.chdir(cwd)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_bytes, resource.RLIM_INFINITY))
    for path, descriptor in ((out, 1), (err, 2)):
        with path.open("wb") as file:
            os.dup2(file.fileno(), descriptor)

    import torch

    from hecate.cli import main

    torch.set_num_threads(1)
    code = main(arguments)
    sys.stdout.flush()
    sys.exit(code)


def succeed(*words: str | Path, cwd: Path, ranks: int = 0) -> str:
    """Run ``hecate *words``, which must end with 0; what it printed."""
    done = hecate(*words, cwd=cwd, ranks=ranks)
    assert done.returncode == 0, done.stderr
    return done.stdout


def wait_for_step(run: Path, step: int, process: subprocess.Popen) -> None:
    """Return as soon as ``step`` is in the run's metrics."""
    path, deadline = run / "metrics.jsonl", time.monotonic() + 100
    while not path.exists() or path.read_bytes().count(b"\n") < step:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, f"step {step} did not come"
        time.sleep(0.002)


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's ``metrics.jsonl``, without those of evaluations."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def set_(**values: object) -> list[str]:
    """``--set`` words: ``set_(train__steps=3)`` is ``--set train.steps=3``."""
    return [
        word
        for name, value in values.items()
        for word in ("--set", f"{name.replace('__', '.')}={value}")
    ]
