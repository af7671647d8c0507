"""How much runs at once."""

from __future__ import annotations

from pydantic import Field

from hecate.config import Config


class SchedulingConfig(Config):
    """``max_sequences``: answers in one step. ``max_batch_tokens``: tokens in one step; a longer
    prompt is computed in chunks beside others' decoding. ``max_scored_tokens``: those of prompts
    among them whose own log-probabilities were asked for, each of which has logits as wide as the
    vocabulary. ``watermark``: the share of blocks that admission leaves free for the growth of what
    runs.

    ``overtaking``: what waits takes the place, and the memory, of what runs where its priority is
    lower by so much; 0 for never. ``quantum_steps``: whoever has just come, or has so few tokens
    left, keeps its place."""

    max_sequences: int = Field(default=64, ge=1)
    max_batch_tokens: int = Field(default=1024, ge=1)
    max_scored_tokens: int = Field(default=256, ge=1)
    watermark: float = Field(default=0.01, ge=0, lt=1)
    overtaking: int = Field(default=1, ge=0)
    quantum_steps: int = Field(default=8, ge=0)
