"""What it costs to bring a preempted sequence back, and which way is the cheaper one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

_TRIED_EACH = 16  # times that a copy was not worth it


@dataclass(frozen=True)
class Lost:
    """What a sequence that is preempted may lose: the keys and values of ``tokens``, in ``blocks``;
    ``copied``: blocks that a swap would have to copy first."""

    tokens: int
    blocks: int
    copied: int


class Choice(Protocol):
    """Swap or recompute, for each victim."""

    def swaps(self, lost: Lost) -> bool:
        """Whether to keep a copy of what may be lost, for which there is room."""
        ...

    def found(self, tokens: int, lost: int) -> None:
        """A sequence came back: ``tokens`` of the ``lost`` ones were still in the prefix cache."""
        ...


class Rate:
    """Of so many things, how much each took; what is older counts less by a tenth each time."""

    def __init__(self, first: float) -> None:
        """``first``: what to assume until something was measured."""
        self._amount, self._count = first, 1.0

    @property
    def each(self) -> float:
        return self._amount / self._count

    def add(self, amount: float, count: float) -> None:
        self._amount = 0.9 * self._amount + amount
        self._count = 0.9 * self._count + count


class RecoveryCosts:
    """The ``Choice`` by measured seconds; recomputation where they are equal.

    Recomputing costs what a token of a prompt costs, a swap two copies of each block, the second
    one only when the sequence comes back. What the prefix cache keeps until then costs neither: of
    what may be lost, the share that it kept of late is expected to be there again. Copies that look
    too dear are tried now and then all the same, since nothing else measures them.
    """

    def __init__(self) -> None:
        self.token_s = Rate(1e-4)
        self.block_s = Rate(1e-4)
        self.kept = Rate(0.0)
        self._refused = 0

    def computed(self, seconds: float, tokens: int) -> None:
        """A step with tokens of prompts, ``tokens`` in all, took so long."""
        self.token_s.add(seconds, tokens)

    def copied(self, seconds: float, blocks: int) -> None:
        """Copying ``blocks`` between device and host, either way, took so long."""
        self.block_s.add(seconds, blocks)

    def found(self, tokens: int, lost: int) -> None:
        self.kept.add(tokens, lost)

    def recompute_s(self, lost: Lost) -> float:
        return (1 - self.kept.each) * lost.tokens * self.token_s.each

    def swap_s(self, lost: Lost) -> float:
        back = (1 - self.kept.each) * lost.blocks
        return (lost.copied + back) * self.block_s.each

    def swaps(self, lost: Lost) -> bool:
        cheaper = self.swap_s(lost) < self.recompute_s(lost)
        self._refused = 0 if cheaper else self._refused + 1
        return cheaper or self._refused % _TRIED_EACH == 0


class AlwaysSwap:
    """The ``Choice`` of who would not wait for measurements."""

    def swaps(self, lost: Lost) -> bool:
        return True

    def found(self, tokens: int, lost: int) -> None:
        pass
