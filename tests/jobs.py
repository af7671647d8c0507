"""The command line as a user runs it: processes of their own, a small corpus, a toy run."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from patience import PATIENCE_S, until
from ranks import FORKSERVER

from hecate.cli import main

if TYPE_CHECKING:
    from hecate.bench.namespaces import Node

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


def start(*words: str | Path, cwd: Path, ranks: int = 0, **environment: str) -> subprocess.Popen:
    """``hecate *words`` in an interpreter of its own, under torchrun where ``ranks`` is given.

    ``fork`` takes seconds less, and serves where it does not matter who starts the command.
    """
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command = [sys.executable, *(launcher if ranks else []), "-m", "hecate", *map(str, words)]
    return subprocess.Popen(
        command,
        cwd=cwd,
        env={**_own_environment(), "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


class Forked:
    """``hecate *words`` in a process forked from one that has imported torch; as ``Popen`` is."""

    def __init__(
        self,
        words: Sequence[str | Path],
        cwd: Path,
        environment: dict[str, str],
        limit_bytes: int,
        node: Node | None,
        out: Path | None,
    ) -> None:
        self.args = [str(word) for word in words]
        self._folder = Path(tempfile.mkdtemp(prefix="printed-"))
        self._out, self._err = out or self._folder / "out", self._folder / "err"
        self._printed: tuple[str, str] | None = None
        self._process = FORKSERVER.Process(
            target=_forked,
            args=(self.args, cwd, environment, self._out, self._err, limit_bytes, node),
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        if self._printed is None:
            out, err = (p.read_text() if p.is_file() else "" for p in (self._out, self._err))
            self._printed = out, err
            shutil.rmtree(self._folder)
        return self._printed

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def fork(
    *words: str | Path,
    cwd: Path,
    largest_file_bytes: int = resource.RLIM_INFINITY,
    node: Node | None = None,
    out: Path | None = None,
    **environment: str,
) -> Forked:
    """``hecate *words`` in a process of its own, in a session of its own.

    ``node``: the network that it has; ``out``: where it prints, such as a pipe with a name.
    """
    return Forked(words, cwd, environment, largest_file_bytes, node, out)


def fork_ranks(*words: str | Path, cwd: Path, ranks: int) -> list[Forked]:
    """As many ranks of ``hecate *words``, each a child of ours: nobody ends one for another."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        fork(*words, cwd=cwd, RANK=str(rank), LOCAL_RANK=str(rank), **place)
        for rank in range(ranks)
    ]


def finish(
    process: subprocess.Popen | Forked, timeout_s: float = PATIENCE_S
) -> subprocess.CompletedProcess[str]:
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
    ranks: int = 1,
    timeout_s: float = PATIENCE_S,
    largest_file_bytes: int = resource.RLIM_INFINITY,
) -> subprocess.CompletedProcess[str]:
    """Run ``hecate *words`` to its end, in one process or as so many ranks.

    ``largest_file_bytes`` limits the files that a single one writes. Of ranks it is the first exit
    code that is not 0, and what each printed, in their order.
    """
    if ranks == 1:
        return finish(fork(*words, cwd=cwd, largest_file_bytes=largest_file_bytes), timeout_s)
    started = fork_ranks(*words, cwd=cwd, ranks=ranks)
    deadline_s = time.monotonic() + timeout_s
    try:
        done = [finish(rank, max(0.0, deadline_s - time.monotonic())) for rank in started]
    finally:
        for rank in started:
            rank.kill()
    code = next((rank.returncode for rank in done if rank.returncode), 0)
    out, err = ("".join(texts) for texts in zip(*((d.stdout, d.stderr) for d in done), strict=True))
    return subprocess.CompletedProcess(started[0].args, code, out, err)


def _forked(
    arguments: list[str],
    cwd: Path,
    environment: dict[str, str],
    out: Path,
    err: Path,
    largest_bytes: int,
    node: Node | None,
) -> None:
    """What ``python -m hecate`` does, in ``cwd`` and into the files ``out`` and ``err``."""
    os.setsid()
    os.chdir(cwd)
    os.environ.update(environment)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_bytes, resource.RLIM_INFINITY))
    for path, descriptor in ((out, 1), (err, 2)):
        with path.open("wb") as file:
            os.dup2(file.fileno(), descriptor)

    if node is not None:
        from hecate.bench.namespaces import enter

        enter(node)
    torch.set_num_threads(1)
    code = main(arguments)
    sys.stdout.flush()
    sys.exit(code)


def succeed(*words: str | Path, cwd: Path, ranks: int = 1) -> str:
    """Run ``hecate *words``, which must end with 0; what it printed."""
    done = hecate(*words, cwd=cwd, ranks=ranks)
    assert done.returncode == 0, done.stderr
    return done.stdout


def wait_for_step(run: Path, step: int, process: subprocess.Popen | Forked) -> None:
    """Return as soon as ``step`` is in the run's metrics."""
    path = run / "metrics.jsonl"

    def come() -> bool:
        return path.exists() and path.read_bytes().count(b"\n") >= step

    wait_for(come, f"step {step}", process, pause_s=0.002)


def wait_for(
    true: Callable[[], Any],
    what: str,
    *processes: subprocess.Popen | Forked,
    pause_s: float = 0.02,
) -> None:
    """``until``, of ``processes`` of which none may end before that."""

    def ended() -> list[subprocess.Popen | Forked]:
        return [process for process in processes if process.poll() is not None]

    until(lambda: true() or ended(), what, pause_s=pause_s)
    assert true(), [process.communicate()[1] for process in ended()]


def json_lines(path: Path) -> list[dict[str, Any]]:
    """What is written to the end of a file that may be growing; nothing where there is none."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's ``metrics.jsonl``, without those of evaluations."""
    return [line for line in json_lines(run / "metrics.jsonl") if "loss" in line]


def set_(**values: object) -> list[str]:
    """``--set`` words: ``set_(train__steps=3)`` is ``--set train.steps=3``."""
    return [
        word
        for name, value in values.items()
        for word in ("--set", f"{name.replace('__', '.')}={value}")
    ]
