"""What a run reads: the corpus, how it is tokenised and packed, where the tokens are kept."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from hecate.config import Config
from hecate.data.packing import TooLong

STDLIB = "stdlib"
"""The ``data.path`` that means the running interpreter's own standard library."""


class TokenizerConfig(Config):
    """A local tokenizer folder; without one, a byte-level BPE is trained on the training split.

    ``vocab_size`` is the size of the trained one: 256 bytes, the end of text and the merges.
    """

    path: str = ""
    vocab_size: int = Field(4096, ge=257)


class ChatFields(Config):
    """The fields of a record that hold what each role says, where records are no lists of turns."""

    user: str = ""
    assistant: str = ""
    system: str = ""

    @model_validator(mode="after")
    def _both_sides(self) -> ChatFields:
        if bool(self.user) != bool(self.assistant) or (self.system and not self.user):
            raise ValueError("name both a field for the user and one for the assistant, or none")
        return self


class ChatConfig(Config):
    """Conversations, of which the assistant's turns are learnt.

    ``template``: a Jinja chat template, or a file that holds one ("": the tokenizer's own). Records
    are lists of turns, or ``fields`` says what makes the turns of one. ``system``: what opens a
    conversation that has no system turn. ``too_long``: what becomes of a conversation that is
    longer than ``data.sequence_tokens``: left out, or cut to it.
    """

    template: str = ""
    fields: ChatFields = ChatFields()
    system: str = ""
    too_long: Literal["drop", "truncate"] = "drop"


class DataConfig(Config):
    """The corpus and how it becomes sequences.

    ``kind``: ``text`` is learnt whole, of ``chat`` what the assistant says. ``path`` is ``stdlib``,
    a file or folder of .txt, .md, .py, .jsonl and .parquet (of chat, the last two), or a folder
    that ``datasets`` saved with ``save_to_disk``. ``max_bytes`` keeps a part of a large corpus:
    whole files where there are several, else the beginning (0 keeps all). ``held_out`` is the
    share of bytes that is never trained on. ``text_field`` names the field of a record to read;
    several, separated by commas, are joined by line ends. ``cache`` is where tokens are kept
    ("" means hecate's folder in the user's cache folder).
    """

    kind: Literal["text", "chat"] = "text"
    path: str = Field(STDLIB, min_length=1)
    sequence_tokens: int = Field(256, ge=2)
    held_out: float = Field(0.05, gt=0.0, le=0.5)
    max_bytes: int = Field(0, ge=0)
    text_field: str = "text"
    chat: ChatConfig = ChatConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    cache: str = ""

    @field_validator("text_field")
    @classmethod
    def _names_fields(cls, value: str) -> str:
        if not all(name.strip() for name in value.split(",")):
            raise ValueError("expected one field name, or several separated by commas")
        return value

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> DataConfig:
        if self.kind == "text" and self.chat != ChatConfig():
            raise ValueError("chat is for conversations alone: set kind to chat")
        if self.kind == "chat" and self.text_field != "text":
            raise ValueError("text_field is for text alone: of chat, set chat.fields")
        if self.kind == "chat" and self.path == STDLIB:
            raise ValueError(f"path {STDLIB} is text: give a file or folder of conversations")
        return self

    @property
    def too_long(self) -> TooLong:
        """What becomes of documents that are longer than a sequence."""
        return self.chat.too_long if self.kind == "chat" else "split"

    @property
    def text_fields(self) -> tuple[str, ...]:
        return tuple(name.strip() for name in self.text_field.split(","))
