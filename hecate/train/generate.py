"""Continue a prompt with a trained model: a Hugging Face folder, or a run, which is exported first.

The model is plain transformers', loaded as any user of the exported folder would load it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    PreTrainedTokenizerBase,
    TextStreamer,
)

from hecate.checkpoint.adapter import has_adapters
from hecate.checkpoint.export import export_run
from hecate.checkpoint.folder import newest_checkpoint
from hecate.checkpoint.integrity import read_record
from hecate.data.chat_template import template_of
from hecate.errors import CheckpointError, ConfigError, ModelError, TokenizerError
from hecate.models.pretrained import causal_model
from hecate.models.tokenizer import model_tokenizer


def generate(
    target: Path,
    prompt: str,
    *,
    max_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    on_text: Callable[[str], None],
    chat: bool = False,
) -> str:
    """The continuation of ``prompt``, without it; ``on_text`` gets it piece by piece.

    With ``chat`` it is the answer to ``prompt``, asked as the tokenizer's chat template asks.
    ``target`` is a Hugging Face folder or a run folder. ``temperature`` 0 takes the likeliest token
    each time; otherwise the same seed gives the same text on the same machine. The text ends at an
    end-of-text token, at ``max_tokens`` or where the model's context is full. Raises
    ``ModelError``, ``TokenizerError``, ``CheckpointError`` or ``ConfigError``.
    """
    _check(max_tokens, temperature, top_p)
    folder = hub_folder_of(target)
    tokenizer = model_tokenizer(folder)
    model: Any = causal_model(folder)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    ids_1T = _prompt_ids(tokenizer, model, prompt, chat=chat).to(model.device)
    context = _context_tokens(model)
    streamer = _Pieces(tokenizer, on_text)
    end = model.generation_config.eos_token_id
    end = tokenizer.eos_token_id if end is None else end
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.inference_mode():
        torch.manual_seed(seed)
        model.generate(
            ids_1T,
            attention_mask=torch.ones_like(ids_1T),
            max_new_tokens=min(max_tokens, context - ids_1T.shape[1]) if context else max_tokens,
            eos_token_id=end,
            pad_token_id=end[0] if isinstance(end, list) else end,
            streamer=streamer,
            **sampling,
        )
    return "".join(streamer.pieces)


def hub_folder_of(target: Path) -> Path:
    """``target`` itself if it is a Hugging Face folder; of a run, the export of its newest step.

    Of a LoRA run the adapters are merged. A run's export goes to ``<run>/export-step-N`` once, and
    again only when the checkpoint is newer than it.
    """
    if (target / "config.json").is_file():
        return target
    if not (target / "config.yaml").is_file():
        raise ModelError(
            f"there is no model in {target}",
            got="neither config.json nor config.yaml in it" if target.is_dir() else "no folder",
            expected="a Hugging Face folder (config.json) or a run folder (config.yaml)",
            fix="give the folder that hecate train or hecate export wrote",
        )
    checkpoint = newest_checkpoint(target / "checkpoints")
    if checkpoint is None:
        raise CheckpointError(
            f"the run {target} has no checkpoint yet",
            got="nothing in its checkpoints folder",
            expected="at least one saved step",
            fix="train until checkpoint.every steps, or to the end",
        )
    out = target / f"export-{checkpoint.name}"
    exported = out / "config.json"
    if not exported.is_file() or exported.stat().st_mtime < checkpoint.stat().st_mtime:
        export_run(target, out, merge=has_adapters(read_record(checkpoint).meta))
    return out


class _Pieces(TextStreamer):
    """Hands text on as soon as no later token can change it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, on_text: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.pieces: list[str] = []
        self._on_text = on_text

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self.pieces.append(text)
            self._on_text(text)


def _check(max_tokens: int, temperature: float, top_p: float) -> None:
    if max_tokens < 1:
        raise ConfigError("nothing to generate", got=f"{max_tokens} tokens", expected="at least 1")
    if not temperature >= 0:
        raise ConfigError("the temperature is negative", got=f"{temperature}", expected="0 or more")
    if not 0 < top_p <= 1:
        raise ConfigError("top-p is no probability", got=f"{top_p}", expected="in (0, 1]")


def _prompt_ids(
    tokenizer: PreTrainedTokenizerBase, model: Any, prompt: str, *, chat: bool
) -> torch.Tensor:
    """``[1, T]`` int64 ids of ``prompt`` that fit the model's vocabulary and context."""
    if chat:
        template_of(tokenizer)
        asked = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        assert isinstance(asked, str)
        prompt = asked
    ids = list(tokenizer(prompt, add_special_tokens=not chat)["input_ids"])
    if not ids and tokenizer.bos_token_id is not None:
        ids = [tokenizer.bos_token_id]
    if not ids:
        raise ConfigError(
            "the prompt is empty",
            expected="some text: the tokenizer has no beginning-of-text token to start from",
        )
    vocabulary = model.get_input_embeddings().weight.shape[0]
    if max(ids) >= vocabulary:
        raise TokenizerError(
            "the tokenizer does not fit the model",
            got=f"token id {max(ids)} in the prompt",
            expected=f"ids below the model's {vocabulary}",
            fix="put the tokenizer that the model was trained with into its folder",
        )
    context = _context_tokens(model)
    if context and len(ids) >= context:
        raise ModelError(
            "the prompt is longer than the model's context",
            got=f"{len(ids)} tokens",
            expected=f"at most {context - 1}, so that one more fits",
            fix="shorten the prompt",
        )
    return torch.tensor([ids])


def _context_tokens(model: Any) -> int:
    """How many positions the model was configured for; 0 where it does not say."""
    text = model.config.get_text_config()
    return int(getattr(text, "max_position_embeddings", None) or 0)
