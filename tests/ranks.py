"""Run a function on N gloo ranks, each a real process, and hand back what each returned.

The processes fork from a server that has torch and transformers imported, so a world of four
starts in well under a second.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from patience import PATIENCE_S

FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["tests_preload"])
# What is forked from a process that has asked for GPUs cannot use them.
SPAWN = multiprocessing.get_context("spawn")


class RankError(AssertionError):
    """A rank raised; its traceback is the message."""


def run_ranks(
    fn: Callable[..., Any],
    world_size: int,
    *args: Any,
    timeout_s: float = PATIENCE_S,
    device: str = "cpu",
) -> list[Any]:
    """``fn(ctx, *args)`` on ``world_size`` ranks; the results by rank.

    ``fn`` must be a module-level function; tensors that it returns should be on the CPU. A rank
    that raises, dies or outlives ``timeout_s`` ends the others and raises ``RankError`` here.
    ``device``: ``cuda`` gives each rank a GPU and groups of NCCL; ``timeout_s`` should then allow
    for half a minute until all have started.
    """
    with _ranks(_rank_main, fn, world_size, (device, *args), spawned=device == "cuda") as ends:
        return _collect(ends, time.monotonic() + timeout_s, timeout_s)


def run_mortals(
    fn: Callable[..., Any], world_size: int, *args: Any, within_s: float = PATIENCE_S, **mesh: Any
) -> dict[int, Any]:
    """``run_ranks`` for ranks that may kill themselves: the results of those that did not, by rank.

    ``within_s``: seconds for all of it. ``mesh``: settings of the mesh. The groups are left as they
    are at the end, since without all ranks they cannot be closed.
    """
    results: dict[int, Any] = {}
    deadline_s = time.monotonic() + within_s
    with _ranks(_mortal_main, fn, world_size, (mesh, *args)) as ends:
        for rank, end in enumerate(ends):
            if not end.poll(max(0.0, deadline_s - time.monotonic())):
                raise RankError(f"rank {rank} gave nothing in {within_s:.0f} s")
            with suppress(EOFError):
                failed, results[rank] = pickle.loads(end.recv_bytes())
                if failed:
                    raise RankError(f"rank {rank} raised:\n{results[rank]}")
    return results


@contextmanager
def _ranks(
    main: Callable[..., None],
    fn: Callable[..., Any],
    world_size: int,
    args: Any,
    *,
    spawned: bool = False,
) -> Iterator[list[Connection]]:
    """A process for each rank, which is gone at the end, and our ends of their pipes."""
    context = SPAWN if spawned else FORKSERVER
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder, "store"))
        processes, ends = [], []
        for rank in range(world_size):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(
                target=main, args=(theirs, fn, rank, world_size, store, args), daemon=True
            )
            process.start()
            theirs.close()
            processes.append(process)
            ends.append(ours)
        try:
            yield ends
        finally:
            for process in processes:
                if process.is_alive():
                    process.kill()
                process.join()


def _collect(ends: list[Connection], deadline: float, timeout_s: float) -> list[Any]:
    results: dict[int, Any] = {}
    while len(results) < len(ends):
        pending = {end: rank for rank, end in enumerate(ends) if rank not in results}
        ready = wait(list(pending), timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            raise RankError(f"ranks {sorted(pending.values())} gave nothing in {timeout_s:.0f} s")
        for end in ready:
            rank = pending[end]  # type: ignore[index]
            try:
                failed, payload = pickle.loads(end.recv_bytes())  # type: ignore[union-attr]
            except EOFError:
                raise RankError(f"rank {rank} died without a result") from None
            if failed:
                raise RankError(f"rank {rank} raised:\n{payload}")
            results[rank] = payload
    return [results[rank] for rank in range(len(ends))]


def _rank_main(
    end: Connection, fn: Callable[..., Any], rank: int, world_size: int, store: str, args: Any
) -> None:
    message = _outcome(fn, rank, world_size, store, args[1:], {"device": args[0]})
    end.send_bytes(pickle.dumps(message))
    end.close()


def _mortal_main(
    end: Connection, fn: Callable[..., Any], rank: int, world_size: int, store: str, args: Any
) -> None:
    def and_leave(ctx: Any, *args: Any) -> None:
        try:
            message = (False, fn(ctx, *args))
        except BaseException:
            message = (True, traceback.format_exc())
        end.send_bytes(pickle.dumps(message))
        os._exit(0)

    message = _outcome(and_leave, rank, world_size, store, args[1:], args[0])
    end.send_bytes(pickle.dumps(message))


def _outcome(
    fn: Callable[..., Any], rank: int, world_size: int, store: str, args: Any, mesh: dict[str, Any]
) -> tuple[bool, Any]:
    """Whether it failed, and what ``fn`` returned or the traceback."""
    import torch
    import torch.distributed as dist

    from hecate.mesh import MeshConfig, Rendezvous, open_mesh

    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank))
    torch.set_num_threads(1)
    try:
        rendezvous = Rendezvous(rank, world_size, rank, dist.FileStore(store, world_size))
        config = MeshConfig(**{"device": "cpu", "timeout_s": 60, **mesh})
        with open_mesh(config, rendezvous) as ctx:
            return False, fn(ctx, *args)
    except BaseException:
        return True, traceback.format_exc()
