"""A process that serves, asked over its standard input; and where vLLM is on this machine."""

from __future__ import annotations

import importlib.util
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from hecate.errors import HecateError

CHECKOUT = Path(__file__).parents[3]


class ContenderFailed(HecateError):
    """It died, or did not answer in time."""


class Contender:
    """One such process, started; ``answer`` reads a line, ``ask`` asks for one."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.name = name
        self._process = process
        self._log = log
        self._read = b""

    def ask(self, order: Mapping[str, object], *, timeout_s: float) -> Any:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise self._failed("it died") from error
        return self.answer(timeout_s=timeout_s)

    def answer(self, *, timeout_s: float) -> Any:
        assert self._process.stdout is not None
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._read:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not select.select([self._process.stdout], [], [], left_s)[0]:
                raise self._failed(f"no answer in {timeout_s:.0f} s")
            more = os.read(self._process.stdout.fileno(), 1 << 16)
            if not more:
                raise self._failed("it died")
            self._read += more
        line, _, self._read = self._read.partition(b"\n")
        return json.loads(line)

    def stop(self) -> None:
        """End it and whatever it started."""
        try:
            family = [*psutil.Process(self._process.pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            family = []
        self._process.kill()
        for child in family:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(OSError):  # what it did not read any more
                pipe.close()

    def _failed(self, reason: str) -> ContenderFailed:
        tail = self._log.read_text(errors="replace").splitlines()[-12:]
        return ContenderFailed(
            f"{self.name} failed", got="\n".join([reason, *(f"    | {line}" for line in tail)])
        )


@contextmanager
def started(
    name: str,
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    folder: Path,
    timeout_s: float,
) -> Iterator[tuple[Contender, Any]]:
    """A contender and the first thing it said, once it is ready; killed in the end."""
    log = folder / f"{name}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=file,
            env={**os.environ, **environment},
        )
    contender = Contender(name, process, log)
    try:
        yield contender, contender.answer(timeout_s=timeout_s)
    finally:
        contender.stop()


def vllm_python(given: str) -> str:
    """An interpreter that has vLLM: ``given``, this one, or that of ``make test``; "" if none."""
    if given:
        return given
    if importlib.util.find_spec("vllm") is not None:
        return sys.executable
    made = CHECKOUT / ".venv-vllm"
    return str(made / "bin" / "python") if (made / "ready").exists() else ""
