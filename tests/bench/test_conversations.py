"""Conversations made of a module, and how they are read."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

from hecate.bench.conversations import conversations_in, write_conversations

MODULE = '''
def bare(a):
    return a

def told(a, *, b=2):
    """Add."""
    return a + b  # a comment

class C:
    def only_told(self):
        """No more than this."""
'''


def test_a_documented_function_is_a_question_and_its_source_the_answer() -> None:
    assert list(conversations_in(MODULE)) == [
        ("Write def told(a, *, b=2):\nAdd.", "def told(a, *, b=2):\n    return a + b")
    ]


def test_the_standard_library_is_full_of_conversations(tmp_path: Path) -> None:
    config = write_conversations(tmp_path, cache="kept")
    assert (config.kind, config.cache, config.path) == (
        "chat",
        "kept",
        str(tmp_path / "conversations.jsonl"),
    )
    with open(config.path, encoding="utf-8") as file:
        for line in itertools.islice(file, 50):
            roles = [turn["role"] for turn in json.loads(line)["messages"]]
            assert roles == ["user", "assistant"]
        assert sum(1 for _ in file) > 2000
