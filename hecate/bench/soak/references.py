"""A small model with adapters, and what it answers greedily: by transformers and PEFT, in fp32.

What ``hecate serve`` answers is compared with it word for word. Prompts are taken of which no
answer hangs on rounding: along each, the two likeliest tokens are apart by ``LEAST_GAP``, and so
are the last expert that is routed to and the first that is not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from hecate.bench.serve.models import ServedModel, tokenizer_of, write_model
from hecate.bench.soak.bad import SERVED
from hecate.errors import HecateError
from serving.bench.adapters import write_adapters

BASE = "base"
"""The model without an adapter."""

EXPERTS_EACH = 2
MODEL = ServedModel(
    SERVED,
    "0.2M Qwen3-MoE",
    "qwen3_moe",
    {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "num_experts": 8,
        "num_experts_per_tok": EXPERTS_EACH,
        "moe_intermediate_size": 64,
        "norm_topk_prob": True,
        "initializer_range": 0.1,  # so that answers differ from each other by more than rounding
        "tie_word_embeddings": True,
    },
    1024,
)
CONTEXT = 1024
KV_BYTES_PER_TOKEN = 2 * 2 * (16 + 16) * 4
RANKS = (4, 8, 16, 8)
ANSWER_TOKENS = 64
TOLD_APART_IN = 8  # tokens
LEAST_GAP = 1e-4
SHARED_TOKENS = 48
CANDIDATES = 32  # of each kind of prompt
LETTERS = "abcdefghijklmnopqrstuvwxyz "
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@dataclass(frozen=True)
class Prompt:
    """As it is asked: ``messages`` of a chat, or else ``tokens``."""

    tokens: tuple[int, ...]
    messages: tuple[Mapping[str, str], ...] = ()


@dataclass(frozen=True)
class Expected:
    """An answer and how it ends."""

    text: str
    finish: str


class References:
    """``answers``: tokens of each prompt, by its number, for each content."""

    def __init__(
        self,
        folder: Path,
        adapters: Mapping[str, Path],
        tokenizer: PreTrainedTokenizerFast,
        prompts: Sequence[Prompt],
        answers: Mapping[str, Sequence[tuple[int, ...]]],
    ) -> None:
        self.folder = folder
        self.adapters = adapters
        self.prompts = tuple(prompts)
        self._answers = answers
        self._text = lru_cache(4096)(
            lambda tokens: tokenizer.decode(
                list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )

    def text(self, number: int, content: str, tokens: int) -> str:
        return str(self._text(self._answers[content][number][:tokens]))

    def expected(
        self, number: int, content: str, tokens: int, *, stop: str = "", ends: bool = False
    ) -> Expected:
        """Of a prompt: up to ``tokens``, to ``stop``, to the end token where it ``ends``."""
        made = self._answers[content][number][:tokens]
        finish = "length"
        if ends and 0 in made:
            made, finish = made[: made.index(0)], "stop"
        text = str(self._text(made))
        if stop and stop in text:
            text, finish = text[: text.find(stop)], "stop"
        return Expected(text, finish)


def make_references(folder: Path, *, seed: int, most: int) -> References:
    """Write model and adapters to ``folder``; up to ``most`` prompts. Raises ``HecateError``."""
    path = write_model(MODEL, folder, context=CONTEXT, dtype=torch.float32)
    tokenizer = tokenizer_of(MODEL.vocab_size)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(path)
    written = write_adapters(path, list(RANKS), folder / "adapters")
    adapters = {f"content{number}": each for number, each in enumerate(written)}
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    first, *others = adapters
    model = PeftModel.from_pretrained(model, str(adapters[first]), adapter_name=first).eval()
    for name in others:
        model.load_adapter(str(adapters[name]), adapter_name=name)
    prompts: list[Prompt] = []
    answers: dict[str, list[tuple[int, ...]]] = {name: [] for name in (BASE, *adapters)}
    for group in _candidates(tokenizer, seed):
        by_content = {}
        for content in answers:
            if content == BASE:
                with model.disable_adapter():
                    by_content[content] = greedy(model, [each.tokens for each in group])
            else:
                model.set_adapter(content)
                by_content[content] = greedy(model, [each.tokens for each in group])
        good = [at for at in range(len(group)) if _clear([a[at] for a in by_content.values()])]
        for at in good[: -(-most // 3)]:
            prompts.append(group[at])
            for content, found in by_content.items():
                answers[content].append(found[at].tokens)
    if len(prompts) < 6:
        raise HecateError(
            "too few prompts have answers that do not hang on rounding",
            got=f"{len(prompts)}",
            expected="6 at least",
            fix="take another seed",
        )
    return References(path, adapters, tokenizer, prompts, answers)


@dataclass(frozen=True)
class Greedy:
    """``gap``: the least one on the way."""

    tokens: tuple[int, ...]
    gap: float


@torch.inference_mode()
def greedy(model: Any, prompts: Sequence[Sequence[int]]) -> list[Greedy]:
    """Answers to prompts of one length, end tokens ignored."""
    B = len(prompts)
    ids_BT = torch.tensor([list(prompt) for prompt in prompts])
    made: list[torch.Tensor] = []
    gap_B = torch.full((B,), torch.inf)
    past = None
    for _ in range(ANSWER_TOKENS):
        out = model(
            input_ids=ids_BT, past_key_values=past, use_cache=True, output_router_logits=True
        )
        past = out.past_key_values
        top_B2, token_B2 = out.logits[:, -1].float().topk(2)
        gap_B = torch.minimum(gap_B, top_B2[:, 0] - top_B2[:, 1])
        for logits_RE in out.router_logits:
            top_BTk = logits_RE.float().view(B, -1, logits_RE.shape[-1]).topk(EXPERTS_EACH + 1)[0]
            between_BT = top_BTk[..., -2] - top_BTk[..., -1]
            gap_B = torch.minimum(gap_B, between_BT.amin(1))
        ids_BT = token_B2[:, :1]
        made.append(ids_BT)
    tokens_BT = torch.cat(made, dim=1)
    return [
        Greedy(tuple(row), gap) for row, gap in zip(tokens_BT.tolist(), gap_B.tolist(), strict=True)
    ]


def _clear(answers: Sequence[Greedy]) -> bool:
    """Whether no answer hangs on rounding, and none could be taken for another content's."""
    begun = {answer.tokens[:TOLD_APART_IN] for answer in answers}
    return len(begun) == len(answers) and all(answer.gap >= LEAST_GAP for answer in answers)


def _candidates(tokenizer: PreTrainedTokenizerFast, seed: int) -> list[list[Prompt]]:
    """Short ones, ones with a long beginning in common, chats; of one length within each."""
    drawn = torch.Generator().manual_seed(seed)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(1, MODEL.vocab_size, (count,), generator=drawn).tolist())

    def chat() -> Prompt:
        at = torch.randint(0, len(LETTERS), (16,), generator=drawn).tolist()
        messages = ({"role": "user", "content": "".join(LETTERS[each] for each in at)},)
        text = tokenizer.apply_chat_template(
            [dict(each) for each in messages], add_generation_prompt=True, tokenize=False
        )
        return Prompt(tuple(tokenizer(text, add_special_tokens=False)["input_ids"]), messages)

    shared = tokens(SHARED_TOKENS)
    return [
        [Prompt(tokens(20)) for _ in range(CANDIDATES)],
        [Prompt(shared + tokens(12)) for _ in range(CANDIDATES)],
        [chat() for _ in range(CANDIDATES)],
    ]
