"""Text to tokens and back: the model's own tokenizer and chat template, through transformers."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from hecate.models.tokenizer import read_tokenizer
from serving.api.schemas import Message, Tool
from serving.api.tools import OPEN
from serving.errors import InvalidRequest

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class Prompts:
    """A tokenizer, asked as requests need it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._texts: dict[int, tuple[str, bytes]] = {}
        backend = getattr(tokenizer, "backend_tokenizer", None)
        rules = json.loads(backend.to_str()) if backend is not None else {}
        self._bytes = _byte_alphabet() if "ByteLevel" in json.dumps(rules.get("decoder")) else {}
        self._added = set(tokenizer.added_tokens_decoder)
        template = tokenizer.chat_template
        self._template = json.dumps(template) if template else ""

    @classmethod
    def of_folder(cls, folder: Path) -> Prompts:
        """The tokenizer of a local Hugging Face folder. Raises ``TokenizerError``."""
        return cls(read_tokenizer(folder))

    def encode(self, text: str) -> tuple[int, ...]:
        """Tokens of a bare prompt, with the tokens that the tokenizer puts around any text."""
        return tuple(self._tokenizer(text)["input_ids"])

    def chat(self, messages: Sequence[Message], tools: Sequence[Tool]) -> tuple[int, ...]:
        """Tokens of a conversation up to where the assistant's turn begins.

        Raises ``InvalidRequest`` without a template, or for what the template refuses.
        """
        if not self._template:
            raise InvalidRequest(
                "this model has no chat template",
                fix="ask /v1/completions, or put a chat_template into tokenizer_config.json",
                param="messages",
            )
        if tools and OPEN not in self._template:
            raise InvalidRequest(
                "the chat template of this model does not know tools",
                expected=f"a template that has calls written as {OPEN}",
                fix="leave tools out",
                param="tools",
            )
        try:
            text = self._tokenizer.apply_chat_template(
                [_turn(message) for message in messages],
                tools=[tool.model_dump(exclude_none=True) for tool in tools] or None,
                add_generation_prompt=True,
                tokenize=False,
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise InvalidRequest(
                "the chat template refuses these messages", got=str(error), param="messages"
            ) from error
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def text(self, prompt: str | Sequence[int]) -> str:
        """A bare prompt as text, special tokens too."""
        if isinstance(prompt, str):
            return prompt
        raw = b"".join(self.token_text(token)[1] for token in prompt)
        return raw.decode("utf-8", "replace")

    def token_text(self, token: int) -> tuple[str, bytes]:
        """A token by itself, as text (bytes that are no character are replaced) and as bytes."""
        if (known := self._texts.get(token)) is None:
            known = self._texts[token] = self._read(token)
        return known

    def _read(self, token: int) -> tuple[str, bytes]:
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if not isinstance(piece, str):  # a row of the model that no token has
            return "", b""
        if token in self._added:
            raw = piece.encode()
        elif self._bytes:
            raw = bytes(self._bytes[character] for character in piece if character in self._bytes)
        elif match := _BYTE.fullmatch(piece):
            raw = bytes([int(match[1], 16)])
        else:
            raw = piece.replace("\u2581", " ").encode()
        return raw.decode("utf-8", "replace"), raw


def _turn(message: Message) -> dict[str, Any]:
    """As templates read it: arguments of calls are values, not JSON text."""
    turn: dict[str, Any] = {"role": message.role, "content": message.text}
    if message.name is not None:
        turn["name"] = message.name
    if message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        turn["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {
                    "name": call.function.name,
                    "arguments": _arguments(call.function.arguments),
                },
            }
            for call in message.tool_calls
        ]
    return turn


def _arguments(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InvalidRequest(
            "arguments of a tool call are not JSON", got=text[:80], param="messages"
        ) from error


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's characters for bytes: printable ones stand for themselves, others from 256 on."""
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = (byte for byte in range(256) if byte not in plain)
    return {chr(byte): byte for byte in plain} | {
        chr(256 + at): byte for at, byte in enumerate(others)
    }
