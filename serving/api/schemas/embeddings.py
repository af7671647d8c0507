"""``POST /v1/embeddings``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from serving.api.schemas.body import Body
from serving.api.schemas.completions import Text, Tokens


class EmbeddingBody(Body):
    """``input``: a text, tokens, or up to 256 of either. ``base64``: of little-endian float32."""

    input: (
        Text
        | Tokens
        | Annotated[list[Text], Field(min_length=1, max_length=256)]
        | Annotated[list[Tokens], Field(min_length=1, max_length=256)]
    )
    encoding_format: Literal["float", "base64"] = "float"

    @property
    def inputs(self) -> list[str | list[int]]:
        if isinstance(self.input, str):
            return [self.input]
        if isinstance(self.input[0], int):
            return [self.input]
        return list(self.input)
