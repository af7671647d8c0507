"""Full disks, killed ranks, and jobs killed at any moment: the checkpoint before stays whole."""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from checkpoint_states import assert_equal, blanked, state_after
from ranks import RankError, run_ranks
from torch import Tensor

from hecate.checkpoint.store import CheckpointStore
from hecate.errors import CollectiveFailure, StorageError
from hecate.mesh import MeshConfig, ParallelContext, Rendezvous, open_mesh

ONE = "step-00000001"


def open_store(ctx: ParallelContext, folder: Path) -> CheckpointStore:
    return CheckpointStore(folder, group=ctx.groups.checkpoint, rank=ctx.rank, keep=2)


def large_state(ctx: ParallelContext, step: int) -> dict[str, Tensor]:
    state = state_after(ctx, step)
    state[f"dense/large{ctx.rank}"] = torch.full((1 << 20,), float(step))
    return state


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def load_and_compare(ctx: ParallelContext, folder: Path) -> int:
    store = open_store(ctx, folder)
    path = store.newest()
    assert path is not None
    step = int(path.name.removeprefix("step-"))
    wanted = large_state(ctx, step)
    state = blanked(wanted)
    store.load(path, state)
    assert_equal(state, wanted)
    return step


def save_over_a_file_limit(ctx: ParallelContext, folder: Path) -> list[str]:
    store = open_store(ctx, folder)
    store.save(1, large_state(ctx, 1), {}, asynchronous=False)
    messages = []
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if ctx.rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    store.save(2, large_state(ctx, 2), {}, asynchronous=True)
    with pytest.raises(StorageError) as caught:
        store.wait()
    messages.append(str(caught.value))
    store.wait()  # It is told once.
    store.save(3, large_state(ctx, 3), {}, asynchronous=True)
    with pytest.raises(StorageError) as caught:
        store.save(4, large_state(ctx, 4), {}, asynchronous=True)
    messages.append(str(caught.value))
    with pytest.raises(StorageError) as caught:
        store.save(5, large_state(ctx, 5), {}, asynchronous=False)
    messages.append(str(caught.value))
    assert names(folder) == [ONE], "nothing half-written is left"
    dist.barrier(group=ctx.groups.control)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    store.save(6, large_state(ctx, 6), {}, asynchronous=True)
    store.wait()
    return messages


def test_a_write_that_fails_on_one_rank_is_a_storage_error_on_every_rank(tmp_path: Path) -> None:
    messages = run_ranks(save_over_a_file_limit, 3, tmp_path)
    assert messages[0] == messages[1] == messages[2]
    for message, step in zip(messages[0], (2, 3, 5), strict=True):
        assert f"step-0000000{step} failed on rank 1" in message
        assert "File too large" in message and "ulimit -f" in message
    assert names(tmp_path) == [ONE, "step-00000006"]
    assert run_ranks(load_and_compare, 3, tmp_path) == [6] * 3


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with room for one checkpoint and a half."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a small file system cannot be mounted here: {error}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill_the_disk(ctx: ParallelContext, folder: Path) -> str:
    store = open_store(ctx, folder)
    store.save(1, large_state(ctx, 1), {}, asynchronous=True)
    store.save(2, large_state(ctx, 2), {}, asynchronous=True)
    with pytest.raises(StorageError) as caught:
        store.wait()
    return str(caught.value)


def test_a_full_disk_is_named_and_leaves_nothing_half_written(small_disk: Path) -> None:
    messages = run_ranks(fill_the_disk, 2, small_disk)
    assert messages[0] == messages[1]
    assert "No space left on device" in messages[0] and "checkpoint.keep" in messages[0]
    assert names(small_disk) == [ONE]
    assert run_ranks(load_and_compare, 2, small_disk) == [1, 1]


def save_until_killed(ctx: ParallelContext, folder: Path, victim: int, delay_s: float) -> None:
    store = open_store(ctx, folder)
    step = 1 + (load_and_compare(ctx, folder) if store.newest() else 0)
    store.save(step, large_state(ctx, step), {}, asynchronous=False)
    if ctx.rank == victim:
        threading.Timer(delay_s, os.kill, (os.getpid(), signal.SIGKILL)).start()
    while True:
        step += 1
        store.save(step, large_state(ctx, step), {}, asynchronous=True)


def test_kills_at_random_moments_never_lose_a_whole_checkpoint(tmp_path: Path) -> None:
    pick = random.Random(5)
    reached = [0]
    for victim in (0, 1, 0, 1):
        with pytest.raises(RankError, match=r"died|CollectiveFailure"):
            run_ranks(save_until_killed, 2, tmp_path, victim, pick.uniform(0.02, 0.3))
        reached.append(max(int(name[5:]) for name in names(tmp_path) if name.startswith("step-")))
    assert run_ranks(load_and_compare, 2, tmp_path) == [reached[-1]] * 2
    assert all(after > before for before, after in zip(reached, reached[1:], strict=False))


def join_and_save(rank: int, folder: Path, end: Connection) -> None:
    rendezvous = Rendezvous(rank, 2, rank, dist.FileStore(str(folder / "store"), 2))
    with open_mesh(MeshConfig(device="cpu", timeout_s=60), rendezvous) as ctx:
        store = open_store(ctx, folder / "checkpoints")
        store.save(1, large_state(ctx, 1), {}, asynchronous=True)
        store.wait()
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        started = time.monotonic()
        try:
            store.save(2, large_state(ctx, 2), {}, asynchronous=True)
            store.wait()
        except CollectiveFailure as error:
            end.send((time.monotonic() - started, str(error)))


def test_a_rank_that_outlives_a_killed_one_hears_of_it_in_seconds(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe(duplex=False)
    members = [
        context.Process(target=join_and_save, args=(rank, tmp_path, theirs), daemon=True)
        for rank in range(2)
    ]
    for member in members:
        member.start()
    try:
        assert ours.poll(30), "rank 0 has heard nothing"
        waited_s, message = ours.recv()
    finally:
        for member in members:
            member.kill()
            member.join()
    assert waited_s < 10
    assert "rank 0: writing checkpoint" in message and "another rank died" in message
