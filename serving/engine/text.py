"""Tokens become text piece by piece: whole characters only, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]

_CONTEXT_TOKENS = 6  # of the prompt: whether a word begins with a space depends on what was before
_HELD_TOKENS = 8  # a character has four bytes at most; what is not whole by then never will be
_BROKEN = "\ufffd"


class TextPieces:
    """One answer's text: what may go out after each token, and what ``stop`` strings cut off."""

    def __init__(self, decode: Decode, prompt: Sequence[int], stop: Sequence[str] = ()) -> None:
        self._decode = decode
        self._tokens = list(prompt[-_CONTEXT_TOKENS:])
        self._known = decode(self._tokens)  # the text of the tokens that went out last
        self._out = len(self._tokens)
        self._stop = tuple(stop)
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that may go out now; sets ``stopped`` where a stop string is complete."""
        self._tokens.append(token)
        text = self._decode(self._tokens)
        waited = len(self._tokens) - self._out
        if len(text) <= len(self._known) or (text.endswith(_BROKEN) and waited < _HELD_TOKENS):
            return ""
        return self._cut(self._advance(text), last=False)

    def finish(self) -> str:
        """What was held back, when no more tokens come."""
        if self.stopped:
            return ""
        return self._cut(self._advance(self._decode(self._tokens)), last=True)

    def _advance(self, text: str) -> str:
        new = text[len(self._known) :]
        self._tokens = self._tokens[self._out :] if len(self._tokens) > self._out else []
        self._known = self._decode(self._tokens)
        self._out = len(self._tokens)
        return new

    def _cut(self, new: str, *, last: bool) -> str:
        text = self._held + new
        found = [place for place in (text.find(stop) for stop in self._stop) if place >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return text[: min(found)]
        keep = 0 if last else max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of ``text`` that ``stop`` begins with."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
