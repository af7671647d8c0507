"""Text and tool calls told apart, however the text comes in pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.api.tools import CLOSE, OPEN, ToolCall, ToolReader

CALL = f'{OPEN}\n{{"name": "f", "arguments": {{"x": [1, "é"]}}}}\n{CLOSE}'
READ = ToolCall("f", '{"x": [1, "é"]}')


def read(parts: list[str]) -> tuple[str, list[ToolCall]]:
    reader = ToolReader()
    text, calls = "", []
    for at, part in enumerate(parts):
        more, found = reader.take(part, last=at == len(parts) - 1)
        text += more
        calls += found
    return text, calls


CASES = [
    ("plain < text <tool", "plain < text <tool", []),
    (f"before {CALL}after", "before after", [READ]),
    (CALL + CALL, "", [READ, READ]),
    (f"{OPEN}no json{CLOSE}.", f"{OPEN}no json{CLOSE}.", []),
    (f'{OPEN}{{"name": 1}}{CLOSE}', f'{OPEN}{{"name": 1}}{CLOSE}', []),
    (CALL.removesuffix(CLOSE), "", [READ]),
    (CALL[:30], CALL[:30], []),
]


@pytest.mark.parametrize(("text", "plain", "calls"), CASES)
@given(cuts=st.lists(st.integers(0, 60), max_size=6))
def test_cuts_change_nothing(text: str, plain: str, calls: list[ToolCall], cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    parts = [text[a:b] for a, b in zip(edges, edges[1:], strict=False)]
    assert read(parts) == (plain, calls)


def test_text_that_cannot_be_a_tag_comes_at_once() -> None:
    reader = ToolReader()
    assert reader.take("a <", last=False) == ("a ", [])
    assert reader.take("b", last=False) == ("<b", [])
