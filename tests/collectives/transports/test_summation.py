"""Sums of rows in the order of ranks, against folds written out, and the buffers that go round."""

from __future__ import annotations

import pytest
import torch

from collectives import LaunchResources
from collectives.transports.resources import as_bytes
from collectives.transports.summation import BLOCK, add_in_order, add_into

CPU = torch.device("cpu")


def rows(dtype: torch.dtype) -> list[torch.Tensor]:
    """1e8 - 1e8 + 1 is 1 only if the large ones meet first."""
    return [torch.tensor([value], dtype=dtype) for value in (1e8, 1.0, -1e8, 1.0)]


@pytest.mark.parametrize("own", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_owner_adds_itself_in_its_own_place(own, dtype):
    """In float32 ((1e8 + 1) - 1e8) + 1 is 1, since 1e8 + 1 is 1e8; in float64 it is 2."""
    values = rows(dtype)
    arrived = [(rank, values[rank]) for rank in (2, 0, 3, 1) if rank != own]
    total = add_in_order(values[own], own, arrived, LaunchResources())
    assert total is values[own]
    assert total.tolist() == [1.0 if dtype == torch.float32 else 2.0]


@pytest.mark.parametrize("own", [0, 1, 2, 3])
def test_low_precision_is_added_up_in_float32_and_left_there(own):
    values = [torch.tensor([value], dtype=torch.bfloat16) for value in (256.0, 1.0, 1.0, 1.0)]
    arrived = [(rank, values[rank]) for rank in (3, 1, 2, 0) if rank != own]
    total = add_in_order(values[own], own, arrived, LaunchResources())
    assert total.dtype == torch.float32
    assert total.tolist() == [259.0]
    assert values[own].tolist() == [256.0 if own == 0 else 1.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wide_parts", [False, True])
@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_a_sum_into_a_row_is_rounded_once_block_by_block(world_size, wide_parts, dtype):
    """More than one block and not a whole number of them; parts may be float32 sums themselves."""
    generator = torch.Generator().manual_seed(world_size)
    values = [torch.randn(2 * BLOCK + 7, generator=generator) for _ in range(world_size)]
    own = 1
    terms = [
        value if wide_parts and rank != own else value.to(dtype)
        for rank, value in enumerate(values)
    ]
    expected = terms[0].float()
    for term in terms[1:]:
        expected = expected + term.float()
    row = terms[own].clone()
    arrived = [(rank, terms[rank].clone()) for rank in reversed(range(world_size)) if rank != own]
    add_into(row, own, arrived, LaunchResources())
    assert torch.equal(row, expected.to(dtype))


def test_buffers_go_round_and_are_never_handed_out_twice():
    resources = LaunchResources()
    first = resources.take(8, torch.float32, CPU)
    second = resources.take(8, torch.float32, CPU)
    assert first.data_ptr() != second.data_ptr()
    place = first.data_ptr()
    resources.give(first)
    third = resources.take(16, torch.bfloat16, CPU)  # as many bytes
    assert (third.data_ptr(), third.dtype, third.numel()) == (place, torch.bfloat16, 16)
    assert resources.take(8, torch.float32, CPU).data_ptr() != place
    assert [resources.next_number() for _ in range(3)] == [0, 1, 2]


def test_one_element_of_stride_0_is_bytes_too():
    row = torch.tensor(1.5).expand(1)
    assert row.is_contiguous() and row.stride() == (0,)
    assert as_bytes(row).view(torch.float32).tolist() == [1.5]
    changed = torch.zeros(2)
    as_bytes(changed)[4:].copy_(as_bytes(row))
    assert changed.tolist() == [0.0, 1.5]
