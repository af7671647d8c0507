"""Real applications: each asks a model again and again, with tools between that do real work.

A model too small to decide is given what it cannot decide: lengths of answers, how many claims
there are, when a loop ends, are drawn from the shapes of ``hecate.bench.gittins.classes``. What it
says is used all the same: it is run, searched for, read again.

| file | decides or executes | in -> out |
|---|---|---|
| protocol.py | - | what an application may do, and what came of it |
| draws.py | decides | a shape, a generator -> lengths, counts and rounds |
| corpus.py | executes | files, or the standard library -> passages |
| search.py | decides | passages, words -> the best passages (BM25) |
| code_feedback.py | executes | a function to write: its tests run on each answer |
| map_reduce.py | executes | a long document -> a summary of summaries |
| react.py | executes | a question: thoughts and searches in turns |
| fact_check.py | executes | a text: its claims, each searched for and judged |
| chat.py | executes | a conversation of several turns |
| served.py | executes | an application on a server, tagged |
| run.py | executes | a mix of all of them -> how long each took |
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from hecate.bench.gittins.applications.chat import chat
from hecate.bench.gittins.applications.code_feedback import code_feedback
from hecate.bench.gittins.applications.fact_check import fact_check
from hecate.bench.gittins.applications.map_reduce import map_reduce
from hecate.bench.gittins.applications.protocol import Task
from hecate.bench.gittins.applications.react import react

TASKS: Mapping[str, Task] = MappingProxyType(
    {
        "chat": chat,
        "code_feedback": code_feedback,
        "fact_check": fact_check,
        "map_reduce": map_reduce,
        "react": react,
    }
)

__all__ = ["TASKS", "Task"]
