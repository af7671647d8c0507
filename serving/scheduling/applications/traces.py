"""What an application did: values that are recorded, kept and drawn from."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """Which backend a unit runs on; all but ``LLM`` take no time of the engine's device."""

    LLM = "llm"
    TOOL = "tool"
    CONTAINER = "container"
    MODEL = "model"
    SEARCH = "search"


@dataclass(frozen=True)
class Call:
    """One request to the engine. ``cached_tokens``: of the prompt, those not computed again."""

    prompt_tokens: int
    output_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True)
class UnitRun:
    """One unit, run once. ``calls``: of an LLM unit, side by side; ``seconds``: from when it began
    to when it ended, of any unit; what an LLM unit waited for others is in it. ``began_s``: after
    the instance did; below 0 for as soon as the one before it had ended."""

    unit: str
    kind: Kind
    calls: tuple[Call, ...] = ()
    seconds: float = 0.0
    failed: bool = False
    began_s: float = -1.0


@dataclass(frozen=True)
class Trace:
    """A whole instance: its units in the order in which they ended."""

    runs: tuple[UnitRun, ...]
