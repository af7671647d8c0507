"""Processes beside the engine that compute adapters' shares on the host's cores.

Numbers go through shared memory, pipes say what to compute, and semaphores that it is done: nobody
spins, and the step that asked goes on meanwhile. An adapter is handed over once, in shared memory
too.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Semaphore
from typing import Any

import torch
from torch import multiprocessing

from serving.lora.adapters import Adapter
from serving.lora.arrival import Share
from serving.lora.targets import Target

_LOG = logging.getLogger(__name__)

MOST_ADAPTERS = 32
_LATE_S = 2.0  # after so long the layer's weights are waited for, and the process is given up
_LOOK_S = 0.05  # how often it is looked whether the process is still there


class HostAssistants:
    """``workers`` processes; ``rows`` and ``width``: of the largest product. An ``Assistant``.

    Rows are split among them, ``rows_each`` at least for each: below that one alone is quicker.
    ``hold`` comes before an adapter's first product, and may come from another thread. Shares are
    float32, whatever ``dtype`` the rows and the halves have.
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
        self._y = torch.empty(rows * width, dtype=torch.float32).share_memory_()
        self._used = (0, 0)  # elements of the two by what is under way
        self._under_way = 0
        self._rows_each = rows_each
        self._pipes: list[Connection] = []
        self._done: list[Semaphore] = []
        self._processes = []
        for _ in range(workers):
            ours, theirs = spawn.Pipe()
            done = spawn.Semaphore(0)
            process = spawn.Process(
                target=_work, args=(theirs, done, self._x, self._y, cores), name="hecate-lora"
            )
            process.daemon = True
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._done.append(done)
            self._processes.append(process)
        for pipe in self._pipes:
            assert pipe.recv()  # it has started, and answers at once from now on
        self._lock = threading.Lock()
        self._held: OrderedDict[str, frozenset[str]] = OrderedDict()
        self._dead = not workers

    @property
    def alive(self) -> bool:
        return not self._dead

    def holds(self, digest: str) -> bool:
        """Whether it has the adapter; it keeps it while others come, then."""
        with self._lock:
            if digest not in self._held:
                return False
            self._held.move_to_end(digest)
            return True

    def hold(self, adapter: Adapter) -> None:
        """Hand an adapter over, and forget the one that was used last the longest ago."""
        if self._dead or self.holds(adapter.digest):
            return
        shapes, halves = [], []
        for name, change in adapter.changes.items():
            shapes.append((name, change.a_ErI.shape, change.b_ErO.shape))
            halves += [change.a_ErI.flatten(), change.b_ErO.flatten()]
        flat = torch.cat(halves).share_memory_()
        with self._lock:
            gone = self._held.popitem(last=False)[0] if len(self._held) >= MOST_ADAPTERS else ""
            for pipe in self._pipes:
                self._tell(pipe, ("hold", adapter.digest, flat, shapes, gone))
            self._held[adapter.digest] = frozenset(adapter.changes)

    def begin(self, digest: str, targets: Sequence[Target], x_RI: torch.Tensor) -> Share | None:
        R, inputs = x_RI.shape
        first_x, first_y = self._used
        stop_x = first_x + x_RI.numel()
        stop_y = first_y + R * sum(target.outputs for target in targets)
        if self._dead or stop_x > self._x.numel() or stop_y > self._y.numel():
            return None
        used = max(1, min(len(self._pipes), R // self._rows_each))
        cuts = [R * n // used for n in range(used + 1)]
        shares: dict[str, torch.Tensor] = {}
        parts = []
        with self._lock:
            if digest not in self._held:
                return None
            for target in targets:
                stop = first_y + R * target.outputs
                shares[target.name] = self._y[first_y:stop].view(R, target.outputs)
                if target.name in self._held[digest]:
                    parts.append((target.name, first_y))
                else:
                    shares[target.name].zero_()
                first_y = stop
            self._x[first_x:stop_x].view(R, inputs).copy_(x_RI)
            for pipe, first, last in zip(self._pipes, cuts, cuts[1:], strict=False):
                self._tell(pipe, ("share", digest, parts, first_x, first, last - first, R))
        self._used = stop_x, stop_y
        self._under_way += 1
        return _Share(self, used, shares)

    def take(self, used: int) -> bool:
        """Wait for the first ``used`` processes to end what was begun first; whether they did."""
        for done, process in zip(self._done[:used], self._processes, strict=False):
            for _ in range(round(_LATE_S / _LOOK_S)):
                if self._dead or done.acquire(timeout=_LOOK_S):
                    break
                if not process.is_alive():
                    self._give_up(f"process {process.pid} has ended")
            else:
                self._give_up("they do not answer")
        self._under_way -= 1
        if not self._under_way:
            self._used = 0, 0
        return not self._dead

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
            pipe.send(message)
        except OSError as error:
            self._give_up(f"{type(error).__name__} {error}")

    def _give_up(self, why: str) -> None:
        if not self._dead:
            _LOG.warning("the host computes no adapters' shares any longer: %s", why)
        self._dead = True


class _Share:
    """One that was begun, by ``used`` processes."""

    def __init__(self, host: HostAssistants, used: int, shares: Mapping[str, torch.Tensor]) -> None:
        self._host = host
        self._used = used
        self._shares = shares

    def __call__(self) -> Mapping[str, torch.Tensor] | None:
        return self._shares if self._host.take(self._used) else None


def _work(
    conn: Connection, done: Semaphore, x: torch.Tensor, y: torch.Tensor, cores: frozenset[int]
) -> None:
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
        _, digest, parts, start, first, R, rows = message
        with torch.inference_mode():
            _compute(held[digest], parts, x[start:], y, range(first, first + R), rows)
        done.release()


def _compute(
    halves: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
    parts: Sequence[tuple[str, int]],
    x: torch.Tensor,
    y: torch.Tensor,
    own: range,
    rows: int,
) -> None:
    """Rows ``own`` of ``rows`` of each of ``parts``, which begins in ``y`` where it says.

    In float32, in which every processor multiplies fast.
    """
    x_RI = None
    for name, start in parts:
        a_rI, b_rO = halves[name]
        if x_RI is None:
            inputs = a_rI.shape[1]
            x_RI = x[: rows * inputs].view(rows, inputs)[own.start : own.stop].float()
        y_RO = y[start : start + rows * b_rO.shape[1]].view(rows, -1)[own.start : own.stop]
        torch.mm(x_RI @ a_rI.float().t(), b_rO.float(), out=y_RO)


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
