"""Every shipped configuration loads, and its model has as many parameters as it should."""

from pathlib import Path

import pytest

from hecate.config import load_config
from hecate.models.build import build_meta_model
from hecate.models.families import find_moe_layers
from hecate.train.config import RunConfig

FOLDER = Path(__file__).parent.parent / "configs" / "train"

# Published totals are of the hub's own checkpoints; the paper's are those of 2502.02581.
EXACT = {
    "mixtral-8x7b": 46_702_792_704,
    "qwen3-30b-a3b": 30_532_122_624,
    "olmoe-1b-7b": 6_919_161_856,
}
PAPER = {
    "gpt-moe-s": (1.84e9, 768, 12),
    "gpt-moe-l": (7.36e9, 1536, 12),
    "bert-moe": (3.27e9, 1024, 12),
    "bert-moe-deep": (6.54e9, 1024, 24),
}


def load(name: str) -> RunConfig:
    return load_config(RunConfig, FOLDER / f"{name}.yaml").value


def parameters(config: RunConfig) -> int:
    model = build_meta_model(config.model, vocab_size=config.data.tokenizer.vocab_size)
    assert all(parameter.is_meta for parameter in model.parameters())
    return sum(parameter.numel() for parameter in model.parameters())


def by_hand(config: RunConfig) -> int:
    """Parameters of a Mixtral with tied embeddings, from its sizes."""
    sizes = config.model.sizes
    D, F, layers, experts, vocabulary = (
        int(str(sizes[key]))
        for key in (
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_local_experts",
            "vocab_size",
        )
    )
    attention, router, norms = 4 * D * D, experts * D, 2 * D
    return vocabulary * D + layers * (attention + router + norms + experts * 3 * D * F) + D


def test_each_file_is_here() -> None:
    names = {path.stem for path in FOLDER.iterdir()}
    assert names == {"demo", "sft", "sft-lora", *EXACT, *PAPER}


@pytest.mark.parametrize("name", sorted({"demo", "sft", "sft-lora", *EXACT, *PAPER}))
def test_a_run_has_the_name_of_its_file(name: str) -> None:
    assert load(name).name == name


@pytest.mark.parametrize("name", EXACT)
def test_published_shapes(name: str) -> None:
    assert parameters(load(name)) == EXACT[name]


@pytest.mark.parametrize("name", PAPER)
def test_shapes_of_the_paper(name: str) -> None:
    total, width, num_layers = PAPER[name]
    config = load(name)
    assert parameters(config) == by_hand(config)
    assert by_hand(config) == pytest.approx(total, rel=0.01)
    model = build_meta_model(config.model, vocab_size=config.data.tokenizer.vocab_size)
    layers = find_moe_layers(model)
    assert len(layers) == num_layers
    for layer in layers:
        assert layer.num_experts == 64
        # an expert of the paper is D x 2D and 2D x D
        assert layer.layout.numel == pytest.approx(4 * width * width, rel=0.003)


def test_demo_by_hand() -> None:
    D, F, experts, layers, vocabulary, heads, kv_heads, H = 256, 256, 16, 4, 4096, 4, 2, 64
    attention = D * H * (2 * heads + 2 * kv_heads) + 2 * H
    layer = attention + experts * D + 2 * D + experts * 3 * D * F
    assert parameters(load("demo")) == vocabulary * D + layers * layer + D
