"""Which attention a family runs on, and the masks of packed documents where it is not ours."""

from __future__ import annotations

import pytest
import torch
from toy_models import FAMILIES, meta_model, toy_config, toy_model
from transformers import PreTrainedModel

from hecate.errors import ModelError
from hecate.models.attention import PACKED, choose_attention, document_masks, packed_attention

PLAIN = [family for family in FAMILIES if family != "gpt_oss"]


def built(family: str, **sizes: object) -> PreTrainedModel:
    return meta_model(toy_config(family, **sizes))


@pytest.mark.parametrize("family", PLAIN)
def test_plain_causal_families_run_packed_on_a_cpu(family):
    assert choose_attention(built(family), "auto", "cpu") == PACKED
    assert choose_attention(built(family), "packed", "cpu") == PACKED


@pytest.mark.parametrize("family", PLAIN)
def test_on_a_gpu_they_run_pytorchs_kernels(family):
    assert choose_attention(built(family), "auto", "cuda") == "sdpa"
    with pytest.raises(ModelError, match="packed does not fit") as caught:
        choose_attention(built(family), "packed", "cuda")
    assert "cuda" in caught.value.got


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_sinks_need_the_familys_own_eager_code(device):
    model = built("gpt_oss", layer_types=["full_attention"] * 2, sliding_window=None)
    assert choose_attention(model, "auto", device) == "eager"


def test_windows_of_gpt_oss_do_not_hide_its_sinks():
    assert choose_attention(built("gpt_oss"), "auto", "cpu") == "eager"


def test_a_sliding_window_needs_masks():
    model = built("mixtral", sliding_window=8)
    assert choose_attention(model, "auto", "cpu") == "sdpa"
    with pytest.raises(ModelError) as caught:
        choose_attention(model, "packed", "cpu")
    assert "sliding window of 8" in caught.value.got


@pytest.mark.parametrize("wanted", ["sdpa", "eager"])
def test_what_is_asked_for_is_taken(wanted):
    assert choose_attention(built("olmoe"), wanted, "cpu") == wanted


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"sliding_window": 4}, "no sliding_window"),
        ({"s_aux": torch.zeros(2)}, "no s_aux"),
        ({"softcap": 30.0}, "no softcap"),
        ({"dropout": 0.1}, "no dropout"),
    ],
)
def test_packed_attention_refuses_what_it_cannot_do(option, message):
    query = torch.zeros(1, 2, 3, 4)
    with pytest.raises(ModelError, match=message):
        packed_attention(torch.nn.Module(), query, query, query, None, 1.0, **option)


def test_without_lengths_every_row_is_one_document():
    query = torch.randn(2, 2, 5, 4)
    out, weights = packed_attention(torch.nn.Module(), query, query, query, None, 0.5)
    same, _ = packed_attention(
        torch.nn.Module(), query, query, query, None, 0.5, document_lengths=(5, 5)
    )
    assert weights is None
    assert out.shape == (2, 5, 2, 4)
    assert torch.equal(out, same)


POSITIONS = torch.tensor([[0, 1, 0, 1, 2, 0], [0, 1, 2, 3, 4, 5]])


def visible(mask: torch.Tensor) -> list[list[str]]:
    """What each query sees, as a string of 1 and 0 over keys; row by row."""
    seen = mask if mask.dtype == torch.bool else mask == 0
    return [["".join(str(int(k)) for k in query) for query in row[0]] for row in seen]


APART = ["100000", "110000", "001000", "001100", "001110", "000001"]
CAUSAL = ["100000", "110000", "111000", "111100", "111110", "111111"]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("family", PLAIN)
def test_one_mask_where_all_layers_are_alike(family, implementation):
    model = toy_model(family)
    model.set_attn_implementation(implementation)
    assert visible(document_masks(model, POSITIONS)) == [APART, CAUSAL]


def test_one_mask_for_each_type_of_layer():
    model = toy_model("gpt_oss", sliding_window=2)
    model.set_attn_implementation("eager")
    masks = document_masks(model, POSITIONS)
    assert set(masks) == {"full_attention", "sliding_attention"}
    assert visible(masks["full_attention"]) == [APART, CAUSAL]
    assert visible(masks["sliding_attention"]) == [
        ["100000", "110000", "001000", "001100", "000110", "000001"],
        ["100000", "110000", "011000", "001100", "000110", "000011"],
    ]


def test_rows_of_one_document_need_no_mask_where_the_kernel_is_causal_itself():
    model = toy_model("olmoe")
    model.set_attn_implementation("sdpa")
    assert document_masks(model, torch.arange(6).repeat(2, 1)) is None
