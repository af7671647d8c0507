from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.memory.blocks import BlockPool, blocks_for
from serving.memory.kv import LayerShape, PagedKV, bytes_per_block
from serving.memory.tables import BlockTable
from serving.memory.tiers import BlockCopy


def test_a_fork_writes_a_copy_and_the_original_stays_where_it_is() -> None:
    pool = BlockPool(6, 4)
    table = BlockTable(pool)
    assert table.missing(0, 6) == 2
    assert table.prepare(0, 6) == ()
    first, second = table.block_ids
    fork = table.fork()
    assert pool.used == 2 and pool.holders(second) == 2
    assert fork.missing(6, 7) == 1  # the half full block is shared
    (copy,) = fork.prepare(6, 7)
    assert copy.source == second and fork.block_ids == [first, copy.target]
    assert table.block_ids == [first, second]
    assert table.prepare(6, 7) == ()  # alone with it again
    fork.release()
    table.release()
    assert pool.free == 6


def test_misuse_is_caught() -> None:
    pool = BlockPool(2, 4)
    with pytest.raises(AssertionError, match="3 blocks of 2"):
        pool.allocate(3)
    (block_id,) = pool.allocate(1)
    pool.release([block_id])
    with pytest.raises(AssertionError, match="free already"):
        pool.release([block_id])
    with pytest.raises(AssertionError, match="is free"):
        pool.hold([block_id])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("gfr"), st.integers(0, 5), st.integers(1, 9))))
def test_blocks_are_never_lost_nor_written_by_two(steps: list[tuple[str, int, int]]) -> None:
    pool = BlockPool(12, 3)
    tables: list[tuple[BlockTable, int]] = []
    for action, which, amount in steps:
        if action == "g":  # grow one, or a new one
            if which < len(tables):
                table, length = tables.pop(which)
            else:
                table, length = BlockTable(pool), 0
            if table.missing(length, length + amount) <= pool.free:
                missing, free = table.missing(length, length + amount), pool.free
                table.prepare(length, length + amount)
                assert pool.free == free - missing
                written = table.block_ids[length // 3 : blocks_for(length + amount, 3)]
                assert all(pool.holders(block_id) == 1 for block_id in written)
                length += amount
            tables.append((table, length))
        elif which < len(tables) and action == "f":
            tables.append((tables[which][0].fork(), tables[which][1]))
        elif which < len(tables):
            tables.pop(which)[0].release()
        held = [block_id for table, _ in tables for block_id in table.block_ids]
        assert pool.used == len(set(held)) and pool.used + pool.free == pool.total
        assert all(pool.holders(block_id) == held.count(block_id) for block_id in set(held))
    for table, _ in tables:
        table.release()
    assert pool.free == pool.total


def test_layers_of_unequal_heads_are_written_and_copied() -> None:
    layers = [LayerShape(2, 4, 3), LayerShape(1, 2, 2)]
    assert bytes_per_block(layers, 4, torch.float32) == (2 * 7 + 4) * 4 * 4
    kv = PagedKV(
        layers, num_blocks=3, block_tokens=4, dtype=torch.float32, device=torch.device("cpu")
    )
    key_TMH, value_TMH = torch.randn(2, 2, 4), torch.randn(2, 2, 3)
    kv.write(0, torch.tensor([5, 4]), key_TMH, value_TMH)
    kv.copy([BlockCopy(1, 2)])
    assert torch.equal(kv.keys[0][[9, 8]], key_TMH)
    assert torch.equal(kv.values[0][[9, 8]], value_TMH)
    assert not kv.keys[0][:4].any() and not kv.keys[1].any()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_keys_lie_in_memory_that_may_have_large_pages() -> None:
    """The kernel gives them to private memory that asks for them, and to no other."""
    layer = LayerShape(4, 64, 64)
    kv = PagedKV(
        [layer], num_blocks=400, block_tokens=16, dtype=torch.float32, device=torch.device("cpu")
    )
    maps = re.split(r"^(?=[0-9a-f]+-)", Path("/proc/self/smaps").read_text(), flags=re.M)[1:]
    for tensor in (*kv.keys, *kv.values):
        (there,) = (text for text in maps if _spans(text, tensor.data_ptr()))
        access, inode = there.split()[1], there.split()[4]
        assert access == "rw-p" and inode == "0"
        if "VmFlags" in there and Path("/sys/kernel/mm/transparent_hugepage").exists():
            assert "hg" in there[there.index("VmFlags") :].split()


def _spans(mapping: str, address: int) -> bool:
    start, stop = (int(end, 16) for end in mapping.split()[0].split("-"))
    return start <= address < stop
