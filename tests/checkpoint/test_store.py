"""Saving and loading on real ranks: worlds, owners, staging, retention, what does not fit."""

from __future__ import annotations

import json
import pickle
import re
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from checkpoint_states import (
    LAYER,
    assert_equal,
    blanked,
    expected,
    full_shapes,
    sharded,
    state_after,
)
from ranks import RankError, run_ranks
from torch.distributed.tensor import DTensor

from hecate.checkpoint.names import expert_key, rng_key
from hecate.checkpoint.store import CheckpointStore
from hecate.checkpoint.writing import StagingBuffers
from hecate.errors import CheckpointError, StorageError
from hecate.mesh import ParallelContext


def open_store(ctx: ParallelContext, folder: Path, keep: int = 0) -> CheckpointStore:
    return CheckpointStore(folder, group=ctx.groups.checkpoint, rank=ctx.rank, keep=keep)


def save_one(ctx: ParallelContext, folder: Path, step: int, asynchronous: bool) -> None:
    store = open_store(ctx, folder)
    meta = {"step": step, "rank": ctx.rank, "nested": {"list": [1, 2.5, "x"]}}
    store.save(step, state_after(ctx, step), meta, asynchronous=asynchronous)
    store.wait()


def load_newest(ctx: ParallelContext, folder: Path, step: int, shift: int) -> dict[str, object]:
    store = open_store(ctx, folder)
    wanted = {
        key: tensor
        for key, tensor in state_after(ctx, step, shift=shift).items()
        if not key.startswith("rng/") or ctx.rank < 2
    }
    path = store.newest()
    assert path is not None
    state = blanked(wanted)
    parts = dict(state)
    store.load(path, state)
    assert all(state[key] is parts[key] for key in state), "load fills in place"
    assert_equal(state, wanted)
    return store.read_meta(path)


@pytest.fixture(scope="module")
def saved_by_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved_by_two")
    run_ranks(save_one, 2, folder, 100, True)
    return folder


@pytest.mark.parametrize(("world_size", "shift"), [(1, 0), (2, 1), (3, 1), (4, 2)])
def test_two_ranks_save_and_any_world_loads(
    saved_by_two: Path, world_size: int, shift: int
) -> None:
    metas = run_ranks(load_newest, world_size, saved_by_two, 100, shift)
    assert metas == [{"step": 100, "rank": 0, "nested": {"list": [1, 2.5, "x"]}}] * world_size


@pytest.mark.parametrize("world_size", [1, 4])
def test_two_ranks_load_what_another_world_saved(tmp_path: Path, world_size: int) -> None:
    run_ranks(save_one, world_size, tmp_path, 7, False)
    run_ranks(load_two_without_rng, 2, tmp_path)


def load_two_without_rng(ctx: ParallelContext, folder: Path) -> None:
    store = open_store(ctx, folder)
    wanted = state_after(ctx, 7, shift=1)
    del wanted[rng_key(ctx.rank)]
    state = blanked(wanted)
    store.load(folder / "step-00000007", state)
    assert_equal(state, wanted)


def save_both_ways(ctx: ParallelContext, folder: Path) -> None:
    for kind, asynchronous in (("sync", False), ("async", True)):
        store = open_store(ctx, folder / kind)
        state = state_after(ctx, 3)
        store.save(3, state, {}, asynchronous=asynchronous)
        # The trainer goes on at once; nothing of this may reach the file.
        for tensor in state.values():
            (tensor.to_local() if isinstance(tensor, DTensor) else tensor).fill_(99)
        store.wait()
        load_newest(ctx, folder / kind, 3, 0)


def test_an_asynchronous_save_equals_a_synchronous_one_whatever_happens_to_the_state(
    tmp_path: Path,
) -> None:
    run_ranks(save_both_ways, 2, tmp_path)
    digests = [
        json.loads((tmp_path / kind / "step-00000003" / "meta.json").read_text())["files"]
        for kind in ("sync", "async")
    ]
    for name in ("__0_0.distcp", "__1_0.distcp"):
        assert digests[0][name] == digests[1][name]


def save_many(ctx: ParallelContext, folder: Path, keep: int, steps: int) -> list[list[int]]:
    store = open_store(ctx, folder, keep)
    seen = []
    for step in range(1, steps + 1):
        store.save(step, state_after(ctx, step), {}, asynchronous=step % 2 == 0)
        store.wait()
        assert all(path.name.startswith("step-") for path in folder.iterdir())
        seen.append(sorted(int(path.name[5:]) for path in folder.iterdir()))
        dist.barrier(group=ctx.groups.control)  # Rank 0 may else be in the next save.
    load_newest(ctx, folder, steps, 0)
    return seen


def save_with_each_keep(ctx: ParallelContext, folder: Path) -> dict[int, list[list[int]]]:
    return {keep: save_many(ctx, folder / str(keep), keep, 4) for keep in (0, 1, 2, 3)}


def test_only_the_newest_are_kept_and_nothing_else_lies_around(tmp_path: Path) -> None:
    assert run_ranks(save_with_each_keep, 2, tmp_path)[0] == {
        0: [[1], [1, 2], [1, 2, 3], [1, 2, 3, 4]],
        1: [[1], [2], [3], [4]],
        2: [[1], [1, 2], [2, 3], [3, 4]],
        3: [[1], [1, 2], [1, 2, 3], [2, 3, 4]],
    }


def open_only(ctx: ParallelContext, folder: Path) -> str:
    return str(open_store(ctx, folder).newest())


def test_a_leftover_is_no_checkpoint_and_goes_when_the_next_job_starts(tmp_path: Path) -> None:
    leftover = tmp_path / ".step-00000900.partial"
    leftover.mkdir()
    (leftover / "__0_0.distcp").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    assert run_ranks(open_only, 2, tmp_path) == ["None", "None"]
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def open_unwritable(ctx: ParallelContext, folder: Path) -> str:
    with pytest.raises(StorageError) as caught:
        open_store(ctx, folder)
    return str(caught.value)


def test_a_folder_that_cannot_be_made_ends_every_rank(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    messages = run_ranks(open_unwritable, 2, tmp_path / "file" / "checkpoints")
    assert messages[0] == messages[1]
    assert "failed on rank 0" in messages[0] and "Not a directory" in messages[0]


def open_a_folder_each(ctx: ParallelContext, folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_store(ctx, folder / str(ctx.rank))
    return str(caught.value)


def test_machines_that_share_no_folder_are_told_at_the_start(tmp_path: Path) -> None:
    messages = run_ranks(open_a_folder_each, 2, tmp_path)
    assert messages[0] == messages[1]
    assert "rank 1 does not see" in messages[0] and "share" in messages[0]


def load_what_does_not_fit(ctx: ParallelContext, folder: Path) -> str:
    store = open_store(ctx, folder)
    state = blanked(state_after(ctx, 100))
    before = {key: tensor.clone() for key, tensor in state.items()}
    changed = dict(state)
    if ctx.rank == 1:
        changed[expert_key(LAYER, 17)] = torch.zeros(11, dtype=torch.float64)
        changed["optimizer/dense/norm/momentum"] = torch.zeros(5)
    changed["dense/norm"] = sharded(ctx, torch.zeros(5))
    changed["dense/scalar"] = torch.zeros(2, dtype=torch.float64)
    with pytest.raises(CheckpointError) as caught:
        store.load(folder / "step-00000100", changed)
    assert_equal(state, before)
    return str(caught.value)


def test_a_missing_key_a_shape_and_a_dtype_are_named_on_every_rank(saved_by_two: Path) -> None:
    messages = run_ranks(load_what_does_not_fit, 2, saved_by_two)
    assert messages[0] == messages[1]
    assert f"expert 17 of {LAYER} is missing" in messages[0]
    assert "momentum of norm is missing" in messages[0]
    assert "norm is (5,) torch.float64 instead of (5,) torch.float32" in messages[0]
    assert "scalar is () torch.float64 instead of (2,) torch.float64" in messages[0]


def save_the_same_expert_twice(ctx: ParallelContext, folder: Path) -> None:
    store = open_store(ctx, folder)
    store.save(1, {expert_key(LAYER, 0): torch.ones(3)}, {}, asynchronous=True)
    store.wait()


def test_two_owners_of_one_expert_are_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(RankError, match=f"ranks 0 and 1 both save expert 0 of {LAYER}"):
        run_ranks(save_the_same_expert_twice, 2, tmp_path)
    assert list(tmp_path.iterdir()) == []


def save_again(ctx: ParallelContext, folder: Path) -> list[str]:
    save_one(ctx, folder, 5, False)
    store = open_store(ctx, folder, keep=2)
    messages = []
    for step in (3, 5):
        with pytest.raises(CheckpointError) as caught:
            store.save(step, state_after(ctx, step), {}, asynchronous=False)
        messages.append(str(caught.value))
    with pytest.raises(CheckpointError) as caught:
        store.refuse_later_than(0)
    store.refuse_later_than(5)
    load_newest(ctx, folder, 5, 0)
    return [*messages, str(caught.value)]


def test_a_run_that_went_back_cannot_mix_two_histories(tmp_path: Path) -> None:
    for messages in run_ranks(save_again, 2, tmp_path):
        assert re.search(r"later than step 3\n  got: +step-00000005", messages[0])
        assert "step 5 is already saved" in messages[1]
        assert "later than step 0" in messages[2]


def load_damaged(ctx: ParallelContext, folder: Path) -> str:
    store = open_store(ctx, folder)
    path = store.newest()
    assert path is not None and path.name == "step-00000002", "newest does not skip it"
    state = blanked(state_after(ctx, 2))
    before = {key: tensor.clone() for key, tensor in state.items()}
    started = time.monotonic()
    with pytest.raises(CheckpointError) as caught:
        store.load(path, state)
    assert time.monotonic() - started < 5
    assert_equal(state, before)
    return str(caught.value)


def test_a_damaged_tensor_is_refused_by_name_on_every_rank(tmp_path: Path) -> None:
    run_ranks(save_many, 2, tmp_path, 0, 2)
    victim = tmp_path / "step-00000002" / "__1_0.distcp"
    storage = pickle.loads((victim.parent / ".metadata").read_bytes()).storage_data
    mine = {index.fqn: at for index, at in storage.items() if at.relative_path == victim.name}
    hit = next(key for key in mine if key.startswith("optimizer/expert/"))
    content = bytearray(victim.read_bytes())
    content[mine[hit].offset + mine[hit].length // 2] ^= 1
    victim.write_bytes(content)
    for message in run_ranks(load_damaged, 3, tmp_path):
        expert_id = hit.split("/")[-2]
        tensor = f"exp_avg_sq of expert {expert_id} of {LAYER}"
        assert f"step-00000002 is damaged: {tensor} in __1_0.distcp" in message
        assert re.search(r"got: +CRC-32 \w{8}\n  expected: CRC-32 \w{8}", message)
        assert "continue from step-00000001" in message


def test_staging_takes_no_new_memory_when_experts_change_owners() -> None:
    buffers = StagingBuffers()
    first = buffers.copy({"a": torch.ones(4), "b": torch.full((4,), 2.0), "c": torch.ones(2, 3)})
    addresses = {tensor.data_ptr() for tensor in first.values()}
    second = buffers.copy({"d": torch.full((4,), 5.0), "a": torch.zeros(4), "c": torch.zeros(2, 3)})
    assert {tensor.data_ptr() for tensor in second.values()} == addresses
    assert [tensor.flatten()[0].item() for tensor in second.values()] == [5.0, 0.0, 0.0]
    third = buffers.copy({"c": torch.zeros(2, 3, dtype=torch.float64)})
    assert third["c"].data_ptr() not in addresses and third["c"].dtype == torch.float64


def test_the_expected_values_tell_keys_and_steps_apart() -> None:
    firsts = {
        (key, step): expected(key, shape, step).flatten()[:1].tolist()
        for key, shape in full_shapes().items()
        for step in (1, 2)
    }
    filled = [first[0] for first in firsts.values() if first]
    assert len(set(filled)) == len(filled)
