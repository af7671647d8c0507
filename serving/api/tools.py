"""Tool calls in an answer's text: ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``.

That is how Hermes, Qwen and most chat templates with tools let a model write them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

OPEN = "<tool_call>"
CLOSE = "</tool_call>"


@dataclass(frozen=True)
class ToolCall:
    """One call; ``arguments`` is JSON text, as the model wrote it."""

    name: str
    arguments: str


class ToolReader:
    """Takes text as it comes and tells plain text from calls; half a tag is held back.

    What stands between the tags and is no call is text after all, tags and everything.
    """

    def __init__(self) -> None:
        self._held = ""
        self._within = False

    def take(self, text: str, *, last: bool) -> tuple[str, list[ToolCall]]:
        """The text and the calls that are certain by now; with ``last``, of all that is left."""
        self._held += text
        plain: list[str] = []
        calls: list[ToolCall] = []
        while True:
            before, tag, after = self._held.partition(CLOSE if self._within else OPEN)
            if not tag:
                break
            if not self._within:
                plain.append(before)
            elif (call := _read(before)) is not None:
                calls.append(call)
            else:
                plain.append(f"{OPEN}{before}{CLOSE}")
            self._within = not self._within
            self._held = after
        if self._within:
            if last:
                if (call := _read(self._held)) is not None:  # a stop token stood for the tag
                    calls.append(call)
                else:
                    plain.append(OPEN + self._held)
                self._held = ""
        else:
            keep = 0 if last else _half_tag(self._held)
            cut = len(self._held) - keep
            plain.append(self._held[:cut])
            self._held = self._held[cut:]
        return "".join(plain), calls


def _half_tag(text: str) -> int:
    """How many of the last characters could be the beginning of a tag."""
    sizes = range(min(len(OPEN) - 1, len(text)), 0, -1)
    return next((size for size in sizes if OPEN.startswith(text[-size:])), 0)


def _read(text: str) -> ToolCall | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    return ToolCall(
        value["name"],
        arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False),
    )
