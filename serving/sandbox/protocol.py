"""A program, what came of it, and what can run one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from serving.sandbox.config import SandboxConfig


@dataclass(frozen=True)
class Program:
    """Python source, and what it reads from its standard input. ``timeout_s`` 0: the config's."""

    code: str
    stdin: str = ""
    timeout_s: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """``exit_code``: negative for a signal. ``waited_s``: for an interpreter, before it began;
    ``seconds``: that it ran. ``cut``: there was more output than is kept."""

    exit_code: int
    stdout: str
    stderr: str
    seconds: float
    waited_s: float = 0.0
    timed_out: bool = False
    cut: bool = False


class Starter(Protocol):
    """Starts interpreters that wait for a program: ``serving.sandbox.child``."""

    def __init__(self, config: SandboxConfig) -> None: ...

    async def start(self, arguments: Sequence[str]) -> Started:
        """One with these arguments; raises ``OSError`` where that is not possible."""
        ...


class Started(Protocol):
    """An interpreter from outside. ``folder``: where its program is to work, as it sees it."""

    process: asyncio.subprocess.Process
    folder: str

    async def kill(self) -> None:
        """It, and whatever it started, are gone; harmless when called twice."""
        ...
