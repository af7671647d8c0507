"""Processes beside the engine that compute adapters' shares on the host's cores.

Numbers go through shared memory, and a pipe says when: there is nothing to serialise, and nobody
spins. An adapter is handed over once, in shared memory too.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections import OrderedDict
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import multiprocessing

from serving.lora.adapters import Adapter
from serving.lora.targets import Target

_LOG = logging.getLogger(__name__)

MOST_ADAPTERS = 32
_LATE_S = 2.0  # after so long the layer's weights are waited for, and the process is given up


class HostAssistants:
    """``workers`` processes; ``rows`` and ``width``: of the largest product. An ``Assistant``.

    Rows are split among them, ``rows_each`` at least for each: below that one alone is quicker.
    ``hold`` comes before an adapter's first product, and may come from another thread.
    """

    def __init__(
        self,
        workers: int,
        *,
        rows: int,
        width: int,
        dtype: torch.dtype,
        rows_each: int,
        cores: frozenset[int],
    ) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._x = torch.empty(rows * width, dtype=dtype).share_memory_()
        self._y = torch.empty(rows * width, dtype=dtype).share_memory_()
        self._rows_each = rows_each
        self._pipes: list[Connection] = []
        self._processes = []
        for _ in range(workers):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(
                target=_work, args=(theirs, self._x, self._y, cores), name="hecate-lora"
            )
            process.daemon = True
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        for pipe in self._pipes:
            assert pipe.recv()  # it has started, and answers at once from now on
        self._sending = threading.Lock()
        self._held: OrderedDict[str, None] = OrderedDict()
        self._dead = not workers

    @property
    def alive(self) -> bool:
        return not self._dead

    def hold(self, adapter: Adapter) -> None:
        """Hand an adapter over, and forget the one that came the longest ago."""
        if self._dead or adapter.digest in self._held:
            return
        gone = self._held.popitem(last=False)[0] if len(self._held) >= MOST_ADAPTERS else ""
        shapes, halves = [], []
        for name, change in adapter.changes.items():
            shapes.append((name, change.a_ErI.shape, change.b_ErO.shape))
            halves += [change.a_ErI.flatten(), change.b_ErO.flatten()]
        flat = torch.cat(halves).share_memory_()
        for pipe in self._pipes:
            self._tell(pipe, ("hold", adapter.digest, flat, shapes, gone))
        self._held[adapter.digest] = None

    def __call__(self, digest: str, target: Target, x_RI: torch.Tensor) -> torch.Tensor | None:
        R, outputs = x_RI.shape[0], target.outputs
        most = self._x.numel()
        if self._dead or digest not in self._held or max(x_RI.numel(), R * outputs) > most:
            return None
        self._x[: x_RI.numel()].copy_(x_RI.reshape(-1))
        used = max(1, min(len(self._pipes), R // self._rows_each))
        cuts = [R * n // used for n in range(used + 1)]
        for pipe, first, last in zip(self._pipes, cuts, cuts[1:], strict=False):
            self._tell(pipe, ("share", digest, target.name, first, last - first))
        try:
            for pipe in self._pipes[:used]:
                if self._dead or not pipe.poll(_LATE_S):
                    self._give_up("they do not answer")
                    return None
                pipe.recv()
        except (EOFError, OSError) as error:
            self._give_up(f"{type(error).__name__} {error}")
            return None
        share_RO: torch.Tensor = self._y[: R * outputs].view(R, outputs)
        return share_RO

    def close(self) -> None:
        """End the processes."""
        self._dead = True
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()

    def _tell(self, pipe: Connection, message: tuple[Any, ...]) -> None:
        try:
            with self._sending:
                pipe.send(message)
        except OSError as error:
            self._give_up(f"{type(error).__name__} {error}")

    def _give_up(self, why: str) -> None:
        if not self._dead:
            _LOG.warning("the host computes no adapters' shares any longer: %s", why)
        self._dead = True


def _work(conn: Connection, x: torch.Tensor, y: torch.Tensor, cores: frozenset[int]) -> None:
    """The process: holds adapters, computes what it is asked, ends with the engine."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    if cores:
        os.sched_setaffinity(0, cores)
    held: dict[str, dict[str, tuple[torch.Tensor, torch.Tensor]]] = {}
    conn.send(True)
    while True:
        try:
            message = conn.recv()
        except (EOFError, OSError):
            return
        if message[0] == "hold":
            _, digest, flat, shapes, gone = message
            held.pop(gone, None)
            held[digest] = _halves(flat, shapes)
            continue
        _, digest, name, first, R = message
        a_rI, b_rO = held[digest][name]
        x_RI = x[first * a_rI.shape[1] :][: R * a_rI.shape[1]].view(R, -1)
        y_RO = y[first * b_rO.shape[1] :][: R * b_rO.shape[1]].view(R, -1)
        torch.mm(x_RI @ a_rI.t(), b_rO, out=y_RO)
        conn.send(True)


def _halves(flat: torch.Tensor, shapes: Any) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    held = {}
    start = 0
    for name, *pair in shapes:
        views = []
        for shape in pair:
            views.append(flat[start : start + shape.numel()].view(shape[1:]))
            start += shape.numel()
        held[name] = (views[0], views[1])
    return held
