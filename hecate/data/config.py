"""What a run reads: the corpus, how it is tokenised and packed, where the tokens are kept."""

from __future__ import annotations

from pydantic import Field, field_validator

from hecate.config import Config

STDLIB = "stdlib"
"""The ``data.path`` that means the running interpreter's own standard library."""


class TokenizerConfig(Config):
    """A local tokenizer folder; without one, a byte-level BPE is trained on the training split.

    ``vocab_size`` is the size of the trained one: 256 bytes, the end of text and the merges.
    """

    path: str = ""
    vocab_size: int = Field(4096, ge=257)


class DataConfig(Config):
    """The corpus and how it becomes sequences.

    ``path`` is ``stdlib``, a file or folder of .txt, .md, .py, .jsonl and .parquet, or a folder
    that ``datasets`` saved with ``save_to_disk``. ``max_bytes`` keeps a part of a large corpus:
    whole files where there are several, else the beginning (0 keeps all). ``held_out`` is the
    share of bytes that is never trained on. ``text_field`` names the field of a record to read;
    several, separated by commas, are joined by line ends. ``cache`` is where tokens are kept
    ("" means hecate's folder in the user's cache folder).
    """

    path: str = Field(STDLIB, min_length=1)
    sequence_tokens: int = Field(256, ge=2)
    held_out: float = Field(0.05, gt=0.0, le=0.5)
    max_bytes: int = Field(0, ge=0)
    text_field: str = "text"
    tokenizer: TokenizerConfig = TokenizerConfig()
    cache: str = ""

    @field_validator("text_field")
    @classmethod
    def _names_fields(cls, value: str) -> str:
        if not all(name.strip() for name in value.split(",")):
            raise ValueError("expected one field name, or several separated by commas")
        return value

    @property
    def text_fields(self) -> tuple[str, ...]:
        return tuple(name.strip() for name in self.text_field.split(","))
