"""Mixed adapters in one batch against PEFT's merged weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft_adapters import ATTENTION, EXPERTS, MLP, merged, save_adapter
from served import served_model
from transformers import PreTrainedModel

from serving.lora.costs import FormCosts
from serving.lora.layers import AdapterLayers
from serving.lora.peft_folder import read_adapter
from serving.lora.slots import Place, Slots
from serving.lora.targets import NO_LAYER, find_targets

CPU = torch.device("cpu")

PADDED_ONLY = FormCosts(0.0, 0.0, 1.0, 1.0, 1.0)
SEGMENTS_ONLY = FormCosts(1.0, 1.0, 0.0, 0.0, 0.0)
BY_ROWS = FormCosts(0.0, 1.0, 10.0, 0.0, 0.0)  # few rows padded, many alone
FORMS = {"padded": PADDED_ONLY, "segments": SEGMENTS_ONLY, "both": BY_ROWS}

CASES = {
    "qwen3": ((ATTENTION, ()), (MLP, ()), ((*ATTENTION, *MLP), ())),
    "mixtral": (((), EXPERTS), (ATTENTION, EXPERTS), (ATTENTION, ())),
    "qwen3_moe": ((ATTENTION, EXPERTS), ((), EXPERTS[:1]), ((), EXPERTS[1:])),
    "gpt_oss": ((ATTENTION, EXPERTS), (ATTENTION, ()), ((), EXPERTS)),
    "deepseek_v3": ((("q_b_proj", "kv_b_proj", "o_proj"), ()), (MLP, ()), ((), EXPERTS)),
}


def logits(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        out: torch.Tensor = model(input_ids=tokens, use_cache=False).logits
    return out


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", CASES)
def test_a_mixed_batch_equals_merged_weights(family: str, form: str, tmp_path: Path) -> None:
    """Rows of three adapters and of none: each run of rows as its own merged model has it."""
    model = served_model(family)
    plain = served_model(family)
    targets = find_targets(model)
    slots = Slots(4, 16)
    layers = AdapterLayers(model, targets, slots.rows, dtype=torch.float32, device=CPU)
    layers.costs = FORMS[form]
    references: list[PreTrainedModel] = [plain]
    places: list[Place | None] = [None]
    for seed, (modules, parameters) in enumerate(CASES[family]):
        folder = save_adapter(
            tmp_path / str(seed),
            plain,
            rank=(3, 8, 16)[seed],
            modules=modules,
            parameters=parameters,
            seed=seed,
        )
        adapter = read_adapter(folder, targets, max_rank=16, dtype=torch.float32)
        layers.attach(tuple(adapter.changes))
        taken = slots.take(adapter.digest, adapter.rank)
        assert taken is not None
        for layer in range(NO_LAYER, targets.num_layers):
            layers.write(taken[0], adapter, layer)
        places.append(taken[0])
        references.append(merged(plain, folder))
    order = (1, 0, 2, 3, 1, 3, 0, 2)
    tokens = torch.tensor([[(11 * row + 5 * col) % 300 for col in range(9)] for row in range(8)])
    with layers.step([(9, places[which]) for which in order]):
        found = logits(model, tokens)
    for row, which in enumerate(order):
        expected = logits(references[which], tokens[row : row + 1])[0]
        torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-4)
        if which:
            base = logits(plain, tokens[row : row + 1])[0]
            assert (expected - base).abs().max() > 0.01  # the adapter does something
    assert torch.equal(logits(model, tokens), logits(plain, tokens))  # and nothing stays
