"""What LoRA adapts, and how large the adapters are."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from hecate.config import Config

Target = Literal["attention", "experts"]


class LoraConfig(Config):
    """Low-rank adapters beside frozen weights; ``rank`` 0 trains the whole model instead.

    A frozen ``W`` becomes ``W + (alpha / rank) * B @ A``, of which only ``A`` (``[rank, in]``) and
    ``B`` (``[out, rank]``, zero at first) train. ``targets``: ``attention`` is every linear layer
    of the attention modules; ``experts`` both projections of every routed expert. ``dropout`` acts
    on what an adapter gets; PEFT has none for routed experts, so that it goes with attention alone.
    """

    rank: int = Field(default=0, ge=0)
    alpha: float = Field(default=16.0, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: tuple[Target, ...] = Field(default=("attention", "experts"), min_length=1)

    @model_validator(mode="after")
    def _dropout_where_it_is(self) -> LoraConfig:
        if self.rank and self.dropout and "experts" in self.targets:
            raise ValueError(
                f"dropout {self.dropout} with experts among targets: PEFT has no dropout on routed "
                "experts; set it to 0, or leave experts out of targets"
            )
        return self

    @property
    def active(self) -> bool:
        return self.rank > 0

    @property
    def scaling(self) -> float:
        """What ``B @ A`` is multiplied with."""
        return self.alpha / self.rank
