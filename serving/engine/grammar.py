"""Answers that have to be of a form: after each token, which ones may come next.

llguidance compiles JSON schemas and walks its automata over a tokenizer's bytes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from serving.errors import InvalidRequest
from serving.request import Grammar

ANY_OBJECT = '{"type": "object"}'
# Room for an indented document, and an end to a model that would write blanks for ever.
BLANKS = r"( ?|\n {0,16})"
WORD_BITS = 32


class Grammars:
    """The grammars of one tokenizer. ``vocab_size``: of the model, whose logits are masked."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, vocab_size: int, eos_token_ids: Sequence[int]
    ) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = list(eos_token_ids)
        self._compiled: LLTokenizer | None = None

    def state(self, grammar: Grammar) -> GrammarState:
        """At the beginning of an answer. Raises ``InvalidRequest`` for what cannot be compiled."""
        matcher = LLMatcher(self._tokens(), _text(grammar), log_level=0)
        if error := matcher.get_error():
            raise _refused(error)
        return GrammarState(matcher, self._vocab_size)

    def _tokens(self) -> LLTokenizer:
        """The tokenizer as llguidance has it; made when the first grammar is asked for."""
        if self._compiled is None:
            if not isinstance(self._tokenizer, PreTrainedTokenizerFast):
                raise _refused(f"{type(self._tokenizer).__name__} is no tokenizer of tokenizers'")
            size = max(self._vocab_size, len(self._tokenizer))
            eos = self._eos_token_ids or None
            self._compiled = from_tokenizer(self._tokenizer, n_vocab=size, eos_token=eos)
        return self._compiled


class GrammarState:
    """Where an answer stands in its grammar."""

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size

    @property
    def ended(self) -> bool:
        """Whether nothing may come any more."""
        return bool(self._matcher.is_stopped())

    def fork(self) -> GrammarState:
        return GrammarState(self._matcher.deep_copy(), self._vocab_size)

    def advance(self, token: int) -> None:
        """Take a token that was allowed."""
        taken = self._matcher.consume_token(token)
        assert taken, f"token {token} was not allowed: {self._matcher.get_error()}"

    def write(self, words_W: torch.Tensor) -> None:
        """Set the bits of the tokens that may come next. ``words_W``: int32, CPU."""
        self._matcher.unsafe_compute_mask_ptr(words_W.data_ptr(), words_W.numel() * 4)


def allowed_tokens(states: Sequence[GrammarState], vocab_size: int) -> torch.Tensor:
    """``[len(states), V]`` bool, CPU: which tokens may come next in each."""
    words = -(-vocab_size // WORD_BITS)
    words_RW = torch.zeros((len(states), words), dtype=torch.int32)
    for state, words_W in zip(states, words_RW, strict=True):
        state.write(words_W)
    bits_B = torch.arange(WORD_BITS, dtype=torch.int32)
    bits_RWB = (words_RW[:, :, None] >> bits_B) & 1
    return bits_RWB.flatten(1)[:, :vocab_size].bool()


def _text(grammar: Grammar) -> str:
    schema = grammar.schema or ANY_OBJECT
    value = json.dumps(_with_blanks(schema))
    if not grammar.before and not grammar.after:
        return str(LLMatcher.grammar_from_json_schema(value))
    before, after = json.dumps(grammar.before), json.dumps(grammar.after)
    return (
        "%llguidance {}\n"
        f"start: {before} /{BLANKS}/ value /{BLANKS}/ {after}\n"
        f"value: %json {value}\n"
    )


def _with_blanks(schema: str) -> Any:
    """The schema, told where blanks may stand; a schema may be just ``true``."""
    value = json.loads(schema)
    if not isinstance(value, dict):
        value = {"allOf": [value]}
    return {**value, "x-guidance": {"whitespace_pattern": BLANKS}}


def _refused(why: str) -> InvalidRequest:
    return InvalidRequest(
        "this response_format cannot be kept to",
        got=(why.strip().splitlines() or [""])[0][:300],
        expected="a JSON schema of what llguidance knows",
        param="response_format",
    )
