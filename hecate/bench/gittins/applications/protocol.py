"""What an application may do, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from hecate.bench.gittins.applications.draws import Draws
from hecate.bench.gittins.applications.search import Passage, Search
from serving.sandbox import SandboxPool


class Run(Protocol):
    """One instance, on a server."""

    async def ask(self, unit: str, prompt: str, tokens: int) -> str:
        """What the model goes on with, in at most so many tokens."""
        ...

    def tool(self, unit: str, kind: str) -> AbstractAsyncContextManager[None]:
        """Around what runs elsewhere."""
        ...


@dataclass(frozen=True)
class World:
    """What tools work with. ``chars_per_token``: of the model's prompts, about."""

    documents: Sequence[Passage]
    search: Search
    sandboxes: SandboxPool
    chars_per_token: float

    def cut(self, text: str, tokens: int) -> str:
        """The end of ``text`` that is about so many tokens."""
        return text[-max(1, int(tokens * self.chars_per_token)) :]


@dataclass(frozen=True)
class Done:
    """``result``: what it was run for. ``asked`` and ``used``: requests, and uses of tools;
    ``succeeded``: by its own measure."""

    result: str
    asked: int
    used: int
    succeeded: bool = True


class Task(Protocol):
    """An application: runs one instance, of what ``draws`` makes of its shape."""

    async def __call__(self, run: Run, world: World, draws: Draws) -> Done: ...
