"""Conversations to fine-tune on that every machine has, made of the standard library.

The user asks for a function by its documentation, the assistant answers with its source.
"""

from __future__ import annotations

import ast
import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from hecate.data import DataConfig
from hecate.data.config import ChatConfig

# A template for models without one: no tokens of its own but the end of text after an answer.
TEMPLATE = """\
{%- for message in messages -%}
  {{- '<|' + message.role + '|>\\n' -}}
  {%- if message.role == 'assistant' -%}
    {%- generation -%}{{- message.content + eos_token -}}{%- endgeneration -%}
  {%- else -%}
    {{- message.content -}}
  {%- endif -%}
  {{- '\\n' -}}
{%- endfor -%}
"""


def conversations_in(source: str) -> Iterator[tuple[str, str]]:
    """Question and answer for each documented function of a module's ``source``, in its order."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef):
            continue
        documentation = ast.get_docstring(node)
        if not documentation or len(node.body) < 2:
            continue
        head = f"def {node.name}({ast.unparse(node.args)})"
        node.body = node.body[1:]
        yield f"Write {head}:\n{documentation}", ast.unparse(node)


def write_conversations(folder: Path, cache: str) -> DataConfig:
    """Write them into ``folder`` as chat JSONL; how to read them, with tokens in ``cache``."""
    path = folder / "conversations.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for module in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
            for question, answer in conversations_in(module.read_text(encoding="utf-8")):
                turns = (("user", question), ("assistant", answer))
                messages = [{"role": role, "content": content} for role, content in turns]
                file.write(json.dumps({"messages": messages}) + "\n")
    return DataConfig(
        kind="chat",
        path=str(path),
        cache=cache,
        chat=ChatConfig(template=TEMPLATE),
    )
