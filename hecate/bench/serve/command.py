"""``hecate serve`` by its own command."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from hecate.bench.serve.contender import CHECKOUT, ContenderFailed

START_S = 300.0
STOP_S = 30.0


@dataclass(frozen=True)
class Served:
    """Where it listens, and which process it is."""

    url: str
    process_id: int


@contextmanager
def serving(target: Path, values: Mapping[str, object], folder: Path) -> Iterator[Served]:
    """The app of ``target`` with ``values`` set, once it answers; its log in ``folder``.

    Raises ``ContenderFailed`` where it does not start.
    """
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [sys.executable, "-m", "hecate", "serve", str(target)]
    for name, value in {"http.port": port, **values}.items():
        command += ["--set", f"{name}={value}"]
    log = folder / "serve.log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=CHECKOUT)
    try:
        deadline = time.monotonic() + START_S
        while not re.search(r"^serving .* at (http\S+)/v1", log.read_text(), re.MULTILINE):
            if process.poll() is not None or time.monotonic() > deadline:
                raise ContenderFailed("hecate serve did not start", got=log.read_text()[-2000:])
            time.sleep(0.2)
        yield Served(f"http://127.0.0.1:{port}", process.pid)
    finally:
        family = [] if process.poll() is not None else _below(process.pid)
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for left in family:  # those of Ray's that outlive who started them
            with suppress(psutil.NoSuchProcess):
                left.kill()


def _below(process_id: int) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(process_id).children(recursive=True)
    return []
