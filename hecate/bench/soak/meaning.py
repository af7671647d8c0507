"""What an adapter's name may have meant while a request was under way."""

from __future__ import annotations

GONE = ""
"""The content of a name that means nothing."""


class Meanings:
    """Contents of names over time, as far as whoever changes them can know.

    While a change is under way the name may mean what it did or what it is to mean; a change that
    failed leaves it so until the next one is done.
    """

    def __init__(self) -> None:
        self._known: dict[str, list[tuple[float, frozenset[str]]]] = {}

    def begin(self, name: str, content: str, at_s: float) -> None:
        """Somebody asks for ``name`` to mean ``content``."""
        self._of(name).append((at_s, self.now(name) | {content}))

    def done(self, name: str, content: str, at_s: float) -> None:
        """It does from now on."""
        self._of(name).append((at_s, frozenset({content})))

    def now(self, name: str) -> frozenset[str]:
        return self._of(name)[-1][1]

    def during(self, name: str, begin_s: float, end_s: float) -> frozenset[str]:
        """All that it may have meant from ``begin_s`` to ``end_s``."""
        found: frozenset[str] = frozenset()
        for at_s, contents in reversed(self._of(name)):
            if at_s <= end_s:
                found |= contents
            if at_s <= begin_s:
                break
        return found

    def _of(self, name: str) -> list[tuple[float, frozenset[str]]]:
        return self._known.setdefault(name, [(float("-inf"), frozenset({GONE}))])
