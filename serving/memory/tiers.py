"""Kinds of memory that blocks lie in, and what moves between them; as values, ids only."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Tier(Enum):
    """Where a block lies; only what is in ``DEVICE`` can be attended to."""

    DEVICE = "device"
    HOST = "host"


@dataclass(frozen=True)
class BlockHandle:
    """One use of a block, from its allocation until it is free: a handle that is kept longer than
    that never stands for what came after."""

    tier: Tier
    block_id: int
    generation: int


@dataclass(frozen=True)
class BlockCopy:
    """The contents of ``source`` have to be in ``target`` before anything is written there."""

    source: int
    target: int


@dataclass(frozen=True)
class Transfer:
    """Block copies from one tier to another, or within one; all are read before any is written."""

    source: Tier
    target: Tier
    copies: tuple[BlockCopy, ...]
