"""Reading one tensor alone, and refusing what is not whole."""

from __future__ import annotations

import json
import pickle
import zlib
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from checkpoint_states import LAYER, expected, full_shapes, state_after
from ranks import run_ranks

from hecate.checkpoint.names import dense_key, describe, expert_key, rng_key
from hecate.checkpoint.reader import CheckpointReader
from hecate.checkpoint.store import CheckpointStore
from hecate.errors import CheckpointError
from hecate.mesh import ParallelContext


def save_step_9(ctx: ParallelContext, folder: Path) -> None:
    store = CheckpointStore(folder, group=ctx.groups.checkpoint, rank=ctx.rank, keep=1)
    store.save(9, state_after(ctx, 9), {"config": {"name": "toy"}}, asynchronous=True)
    store.wait()


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("original")
    run_ranks(save_step_9, 3, folder)
    return {path.name: path.read_bytes() for path in (folder / "step-00000009").iterdir()}


@pytest.fixture
def checkpoint(original: dict[str, bytes], tmp_path: Path) -> Path:
    path = tmp_path / "step-00000009"
    path.mkdir()
    for name, content in original.items():
        (path / name).write_bytes(content)
    return path


def test_every_tensor_comes_back_whole_without_a_process_group(checkpoint: Path) -> None:
    assert not dist.is_initialized()
    reader = CheckpointReader(checkpoint)
    assert (reader.step, reader.meta) == (9, {"config": {"name": "toy"}})
    shapes = full_shapes()
    assert reader.keys() == tuple(sorted([*shapes, *(rng_key(rank) for rank in range(3))]))
    for key, shape in shapes.items():
        tensor = reader.tensor(key)
        assert tensor.device.type == "cpu" and torch.equal(tensor, expected(key, shape, 9)), key
    for rank in range(3):
        assert reader.tensor(rng_key(rank)).tolist() == [rank] * 3


def test_a_tensor_is_read_from_its_own_bytes_alone(checkpoint: Path) -> None:
    key = expert_key(LAYER, 2)
    metadata = pickle.loads((checkpoint / ".metadata").read_bytes())
    own = [info for index, info in metadata.storage_data.items() if index.fqn == key]
    assert len(own) == 1
    for path in checkpoint.glob("*.distcp"):
        content = bytearray(b"\xff" * path.stat().st_size)
        if path.name == own[0].relative_path:
            span = slice(own[0].offset, own[0].offset + own[0].length)
            content[span] = path.read_bytes()[span]
        path.write_bytes(content)
    tensor = CheckpointReader(checkpoint, checksums=False).tensor(key)
    assert torch.equal(tensor, expected(key, (11,), 9))
    with pytest.raises(CheckpointError, match="is damaged"):
        CheckpointReader(checkpoint)


def test_plain_dcp_reads_the_files_too(checkpoint: Path) -> None:
    key = dense_key("uneven")
    state = {key: torch.zeros(7, 3, dtype=torch.float64)}
    with pytest.warns(UserWarning, match="single process"):
        dcp.load(state, checkpoint_id=checkpoint, no_dist=True)
    assert torch.equal(state[key], expected(key, (7, 3), 9))


def test_a_key_that_is_not_there_is_named(checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match=f"has no expert 40 of {LAYER}"):
        CheckpointReader(checkpoint).tensor(expert_key(LAYER, 40))


FILES = [".metadata", "__0_0.distcp", "__1_0.distcp", "__2_0.distcp"]


@pytest.mark.parametrize("checksums", [True, False])
@pytest.mark.parametrize("name", [*FILES, "meta.json"])
def test_a_missing_or_truncated_file_is_refused_by_name(
    checkpoint: Path, name: str, checksums: bool
) -> None:
    file = checkpoint / name
    size_bytes = file.stat().st_size
    with file.open("r+b") as stream:
        stream.truncate(size_bytes - 1)
    with pytest.raises(CheckpointError) as caught:
        CheckpointReader(checkpoint, checksums=checksums)
    assert f"{checkpoint} is damaged: {name}" in str(caught.value)
    if name != "meta.json":
        assert str(caught.value.got).startswith(f"{size_bytes - 1} bytes")
        assert ("end before the end of" in str(caught.value.got)) == name.endswith(".distcp")
        assert caught.value.expected == f"{size_bytes} bytes"
    file.unlink()
    with pytest.raises(CheckpointError) as caught:
        CheckpointReader(checkpoint, checksums=checksums)
    assert f"is damaged: {name}" in str(caught.value) and caught.value.got == "no such file"
    assert checkpoint.name in caught.value.fix


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_refused_by_the_name_of_its_tensor(checkpoint: Path, name: str) -> None:
    """Each byte of a file of tensors belongs to one, and ``.metadata`` is checked as a whole."""
    content = (checkpoint / name).read_bytes()
    metadata = pickle.loads((checkpoint / ".metadata").read_bytes())
    spans = {
        (at.offset, at.offset + at.length): index
        for index, at in metadata.storage_data.items()
        if at.relative_path == name
    }
    for place in {0, len(content) // 7, len(content) // 3, len(content) // 2, len(content) - 1}:
        changed = bytearray(content)
        changed[place] ^= 0x10
        (checkpoint / name).write_bytes(changed)
        with pytest.raises(CheckpointError) as caught:
            CheckpointReader(checkpoint)
        what = name
        for (begin, end), index in spans.items():
            if begin <= place < end:
                shard = f" from {list(index.offset)}" if any(index.offset or ()) else ""
                what = f"{describe(index.fqn)}{shard} in {name}"
        assert str(caught.value).splitlines()[0].endswith(f"is damaged: {what}")
        assert (what == name) == (name == ".metadata")


def test_all_damaged_tensors_of_a_file_are_counted(checkpoint: Path) -> None:
    file = max(checkpoint.glob("*.distcp"), key=lambda path: path.stat().st_size)
    metadata = pickle.loads((checkpoint / ".metadata").read_bytes())
    count = sum(at.relative_path == file.name for at in metadata.storage_data.values())
    file.write_bytes(b"\xff" * file.stat().st_size)
    with pytest.raises(CheckpointError, match=f"and {count - 3} more in {file.name}"):
        CheckpointReader(checkpoint)


def test_a_checkpoint_of_the_format_before_is_read_and_its_damage_told_by_file(
    checkpoint: Path,
) -> None:
    file = checkpoint / "meta.json"
    document = json.loads(file.read_text())
    contents = {name: (checkpoint / name).read_bytes() for name in FILES}
    files = {
        name: {"size_bytes": len(data), "crc32": zlib.crc32(data)}
        for name, data in contents.items()
    }
    content = {"format": 1, "step": 9, "meta": document["meta"], "files": files}
    crc = zlib.crc32(json.dumps(content, sort_keys=True).encode())
    file.write_text(json.dumps({**content, "crc32": crc}))
    key = expert_key(LAYER, 2)
    assert torch.equal(CheckpointReader(checkpoint).tensor(key), expected(key, (11,), 9))
    changed = bytearray(contents["__1_0.distcp"])
    changed[len(changed) // 2] ^= 1
    (checkpoint / "__1_0.distcp").write_bytes(changed)
    with pytest.raises(CheckpointError, match="is damaged: __1_0.distcp\n"):
        CheckpointReader(checkpoint)


def test_any_flipped_bit_of_the_meta_is_refused_or_means_the_same(checkpoint: Path) -> None:
    file = checkpoint / "meta.json"
    content = file.read_bytes()
    meaning = json.loads(content)
    for place in range(0, len(content), 3):
        changed = bytearray(content)
        changed[place] ^= 1 << (place % 7)
        file.write_bytes(changed)
        try:
            CheckpointReader(checkpoint)
        except CheckpointError as error:
            assert "meta.json" in str(error) or "another format" in str(error)
        else:
            assert json.loads(changed) == meaning, f"byte {place}"


@pytest.mark.parametrize("document", ["[]", "{}", "null", '{"format": 1}', '{"format": "1"}'])
def test_a_meta_of_another_kind_is_refused(checkpoint: Path, document: str) -> None:
    (checkpoint / "meta.json").write_text(document)
    with pytest.raises(CheckpointError, match="is damaged: meta.json"):
        CheckpointReader(checkpoint)


def test_a_later_format_asks_for_the_version_that_wrote_it(checkpoint: Path) -> None:
    document = json.loads((checkpoint / "meta.json").read_text())
    (checkpoint / "meta.json").write_text(json.dumps({**document, "format": 3}))
    with pytest.raises(CheckpointError, match="format 3"):
        CheckpointReader(checkpoint)


def test_a_path_without_a_checkpoint_names_the_newest_beside_it(checkpoint: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        CheckpointReader(checkpoint.parent / "step-00000010")
    assert "nothing at this path" in str(caught.value)
    assert f"use {checkpoint}" in caught.value.fix
