"""Passages to search and documents to sum up: files of one's own, or what every machine has."""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

from hecate.bench.gittins.applications.search import Passage
from hecate.errors import ConfigError

_PASSAGE_CHARS = 600
_MOST_FILES = 120


def documents_in(path: str) -> list[Passage]:
    """Text files at or below ``path``, one document each; with "", the documentation of the
    standard library's modules. Raises ``ConfigError``."""
    if not path:
        return list(_standard_library())
    root = Path(path).expanduser()
    files = [root] if root.is_file() else sorted(root.rglob("*.txt")) + sorted(root.rglob("*.md"))
    documents = [Passage(file.name, file.read_text(errors="replace")) for file in files]
    documents = [document for document in documents if document.text.strip()]
    if not documents:
        raise ConfigError(
            "there is no text to search", got=path, expected="a file, or a folder with .txt or .md"
        )
    return documents


def passages_of(documents: Sequence[Passage]) -> list[Passage]:
    """Paragraphs, put together or cut to about the same length."""
    passages = []
    for document in documents:
        text = ""
        for paragraph in document.text.split("\n\n"):
            text = f"{text}\n\n{paragraph}".strip()
            while len(text) >= _PASSAGE_CHARS:
                passages.append(Passage(document.title, text[:_PASSAGE_CHARS]))
                text = text[_PASSAGE_CHARS:]
        if text:
            passages.append(Passage(document.title, text))
    return passages


def _standard_library() -> Iterator[Passage]:
    modules = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    for module in modules[:_MOST_FILES]:
        tree = ast.parse(module.read_text(encoding="utf-8"))
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
        found = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)]
        text = "\n\n".join(each for each in found if each)
        if len(text) >= _PASSAGE_CHARS:
            yield Passage(module.name, text)
