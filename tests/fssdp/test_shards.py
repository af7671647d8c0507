"""What a rank keeps of a layer: masters, compute weights and one gradient buffer."""

from __future__ import annotations

import pytest
import torch

from hecate.fssdp.shards import ExpertShard
from hecate.models.families import ChunkLayout, ExpertTensor, MoELayer

LAYER = MoELayer(
    0, "mlp.experts", 5, ChunkLayout((ExpertTensor("w", (2, 3), 0), ExpertTensor("b", (2,), 6)))
)


def shard(*expert_ids: int, compute_dtype: torch.dtype = torch.float32) -> ExpertShard:
    return ExpertShard(
        LAYER,
        expert_ids,
        device=torch.device("cpu"),
        dtype=torch.float32,
        compute_dtype=compute_dtype,
    )


def expert(value: float) -> dict[str, torch.Tensor]:
    return {"w": torch.arange(6.0).view(2, 3) + value, "b": torch.tensor([value, -value])}


def test_an_expert_is_written_to_its_own_chunk_alone():
    own = shard(1, 4)
    own.write(4, expert(10))
    assert own.parameter.tolist() == [[0] * 8, [10, 11, 12, 13, 14, 15, 10, -10]]
    assert own.chunk(4).tolist() == [10, 11, 12, 13, 14, 15, 10, -10]
    assert own.chunk(1).tolist() == [0] * 8
    assert own.weights["w"][1].tolist() == [[10, 11, 12], [13, 14, 15]]
    assert own.weights["b"][1].tolist() == [10, -10]


def test_an_expert_of_another_rank_is_refused():
    with pytest.raises(ValueError):
        shard(1, 4).write(2, expert(1))
    with pytest.raises(ValueError):
        shard(1, 4).chunk(0)


def test_a_chunk_is_a_view_of_the_masters():
    own = shard(3)
    own.chunk(3).fill_(2)
    assert own.parameter.tolist() == [[2.0] * 8]


def test_where_dtypes_agree_the_optimizers_weights_are_the_forwards():
    own = shard(0, 1)
    with torch.no_grad():
        own.parameter.add_(1)
    assert bool((own.weights["w"] == 1).all())
    assert own.weights["w"].data_ptr() == own.parameter.data_ptr()


def test_bf16_weights_follow_the_masters_at_refresh_only():
    own = shard(0, 2, compute_dtype=torch.bfloat16)
    own.write(0, expert(1.001))
    assert own.weights["w"].dtype == torch.bfloat16
    assert bool((own.weights["w"] == 0).all())
    own.refresh()
    assert own.parameter[0, 0].item() == pytest.approx(1.001)
    assert own.weights["w"][0, 0, 0].item() == 1.0  # the nearest bf16
    assert own.weights["b"][0].tolist() == [1.0, -1.0]


def test_the_first_backward_of_a_step_overwrites_and_the_others_add():
    own = shard(0, 1)
    assert own.parameter.grad is None
    assert own.begin_backward()
    assert own.parameter.grad is not None
    assert not own.begin_backward()
    own.grads["b"][1, 0] = 5
    assert own.parameter.grad[1].tolist() == [0, 0, 0, 0, 0, 0, 5, 0]
    own.begin_step()
    assert own.parameter.grad is None
    assert own.begin_backward()


def test_after_the_optimizer_dropped_the_gradient_the_same_buffer_comes_back():
    own = shard(0)
    own.begin_backward()
    first = own.parameter.grad
    own.begin_step()
    own.begin_backward()
    assert own.parameter.grad is first


def test_a_rank_without_experts_keeps_empty_tensors():
    own = shard()
    assert own.parameter.shape == (0, 8)
    assert own.weights["w"].shape == (0, 2, 3)
    own.begin_backward()
    own.refresh()
