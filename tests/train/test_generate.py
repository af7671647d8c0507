"""Generating from a Hugging Face folder, as a user of the command would."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from toy_models import toy_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from hecate.checkpoint.names import dense_key, expert_key
from hecate.checkpoint.store import CheckpointStore
from hecate.errors import CheckpointError, ConfigError, ModelError, TokenizerError
from hecate.mesh import MeshConfig, Rendezvous, open_mesh
from hecate.models.families import find_moe_layers
from hecate.train.generate import generate, hub_folder_of

VOCABULARY = 300
CONTEXT = 64
GREEDY = {"temperature": 0.0, "top_p": 1.0, "seed": 0}


def _save_tokenizer(folder: Path) -> None:
    bytes_only = Tokenizer(models.BPE())
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bytes_only.train_from_iterator(["the cat sat on the mat, the cat sat\n"] * 4, trainer)
    PreTrainedTokenizerFast(tokenizer_object=bytes_only, eos_token="<|end|>").save_pretrained(
        folder
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A toy Mixture-of-Experts model that writes letters and never ends, with its tokenizer."""
    folder = tmp_path_factory.mktemp("hub")
    _save_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = toy_model("qwen3_moe", vocab_size=VOCABULARY, eos_token_id=0, bos_token_id=None)
    with torch.no_grad():
        for token_id in range(VOCABULARY):
            letters = tokenizer.decode([token_id]).strip().isalpha()
            model.lm_head.weight[token_id] *= 3 if letters else 0
    model.save_pretrained(folder)
    return folder


def _generate(target, prompt="the cat", *, max_tokens=16, on_text=None, **settings):
    return generate(
        target,
        prompt,
        max_tokens=max_tokens,
        on_text=on_text or (lambda _: None),
        **{**GREEDY, **settings},
    )


def test_greedy_text_is_the_model_s_own_and_streams_in_pieces(folder):
    pieces: list[str] = []
    text = _generate(folder, on_text=pieces.append)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer("the cat", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        for _ in range(16):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    prompt_tokens = len(tokenizer("the cat")["input_ids"])
    assert text == tokenizer.decode(ids[0, prompt_tokens:], skip_special_tokens=True)
    assert "".join(pieces) == text
    assert len(pieces) > 1 and all(pieces)


def test_the_same_seed_gives_the_same_text_and_another_seed_another(folder):
    sampled = {"temperature": 1.5, "top_p": 0.95}
    state = torch.random.get_rng_state()
    first, again, other = (_generate(folder, **sampled, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    assert torch.equal(torch.random.get_rng_state(), state)  # the caller's randomness is its own


def test_a_tiny_top_p_is_greedy(folder):
    assert _generate(folder, temperature=1.0, top_p=1e-6) == _generate(folder)


def test_the_text_ends_where_the_context_is_full(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = "the cat sat on the mat, " * 3
    room = CONTEXT - len(tokenizer(prompt)["input_ids"])
    assert 0 < room < CONTEXT
    assert _generate(folder, prompt, max_tokens=1000) == _generate(folder, prompt, max_tokens=room)


def test_a_prompt_longer_than_the_context_is_refused(folder):
    with pytest.raises(ModelError, match="longer than the model's context") as raised:
        _generate(folder, "xyzw" * CONTEXT)
    assert f"at most {CONTEXT - 1}" in str(raised.value)


def test_a_chat_answers_what_the_template_asks(folder, tmp_path):
    with pytest.raises(TokenizerError, match="no chat template"):
        _generate(folder, chat=True)
    chat = Path(shutil.copytree(folder, tmp_path / "chat"))
    (chat / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.role + ' says ' + m.content + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'so ' }}{% endif %}"
    )
    answer = _generate(chat, "the cat", chat=True)
    assert answer == _generate(folder, "user says the cat<|end|>so ")
    assert answer != _generate(chat, "the cat")


def test_an_empty_prompt_needs_a_beginning_token(folder):
    with pytest.raises(ConfigError, match="prompt is empty"):
        _generate(folder, "")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_tokens": 0}, "nothing to generate"),
        ({"temperature": -1.0}, "temperature is negative"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0.0}, "top-p"),
        ({"top_p": 1.5}, "top-p"),
    ],
)
def test_settings_out_of_range_are_refused_before_anything_is_loaded(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        _generate(tmp_path / "nowhere", **settings)


def test_folders_that_hold_no_model(tmp_path):
    with pytest.raises(ModelError, match="there is no model in") as raised:
        _generate(tmp_path / "nowhere")
    assert "no folder" in str(raised.value)
    with pytest.raises(ModelError, match="there is no model in") as raised:
        _generate(tmp_path)
    assert "neither config.json nor config.yaml" in str(raised.value)


def test_a_run_without_a_checkpoint(tmp_path):
    (tmp_path / "config.yaml").write_text("name: toy\n")
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        _generate(tmp_path)


def _save_step(run: Path, step: int, model: PreTrainedModel) -> None:
    """What a training job of one rank leaves of ``model`` at ``step``."""
    layers = find_moe_layers(model)
    tensors = model.state_dict()
    state = {}
    for layer in layers:
        stacked = [tensors.pop(f"{layer.name}.{part.name}") for part in layer.layout.tensors]
        for expert_id in range(layer.num_experts):
            chunk = torch.cat([tensor[expert_id].flatten() for tensor in stacked])
            state[expert_key(layer.name, expert_id)] = chunk
    state |= {dense_key(name): tensor for name, tensor in tensors.items()}
    meta = {"hf_config": model.config.to_dict(), "config": {"train": {"dtype": "float32"}}}
    with open_mesh(MeshConfig(device="cpu"), Rendezvous.from_environment({})) as ctx:
        store = CheckpointStore(run / "checkpoints", group=ctx.groups.checkpoint, rank=0, keep=0)
        store.save(step, state, meta, asynchronous=False)


def test_a_run_is_exported_once_and_again_when_it_has_trained_on(folder, tmp_path):
    run = tmp_path / "run"
    _save_tokenizer(run / "tokenizer")
    (run / "config.yaml").write_text("name: toy\n")
    model = AutoModelForCausalLM.from_pretrained(folder)
    _save_step(run, 10, model)
    assert _generate(run) == _generate(folder)
    exported = run / "export-step-00000010" / "config.json"
    written = exported.stat().st_mtime_ns
    assert _generate(run, "the mat") == _generate(folder, "the mat")
    assert exported.stat().st_mtime_ns == written

    with torch.no_grad():
        model.lm_head.weight.copy_(model.lm_head.weight.roll(7, dims=1))
    _save_step(run, 20, model)
    assert _generate(run) != _generate(folder)
    assert hub_folder_of(run) == run / "export-step-00000020"
    # The same step anew, as after a run that was started over.
    os.utime(exported, (0, 0))
    shutil.rmtree(run / "checkpoints" / "step-00000020")
    hub_folder_of(run)
    assert exported.stat().st_mtime_ns > written


@pytest.fixture
def broken(folder, tmp_path) -> Path:
    """A copy of the folder, to be broken by the test."""
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_a_folder_without_a_tokenizer(broken):
    for path in broken.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(TokenizerError, match="no usable tokenizer"):
        _generate(broken)


def test_a_tokenizer_of_another_model(broken):
    config = json.loads((broken / "config.json").read_text())
    model = toy_model("qwen3_moe", vocab_size=32)
    model.save_pretrained(broken)
    assert json.loads((broken / "config.json").read_text()) != config
    with pytest.raises(TokenizerError, match="does not fit the model"):
        _generate(broken)


def test_truncated_weights(broken):
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="cannot load the model"):
        _generate(broken)


def test_missing_weights_are_not_made_up(broken):
    from safetensors.torch import load_file, save_file

    weights = broken / "model.safetensors"
    tensors = load_file(weights)
    tensors.pop("model.norm.weight")
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="lacks weights") as raised:
        _generate(broken)
    assert "model.norm.weight" in str(raised.value)
