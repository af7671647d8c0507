"""Published traces of production services: when requests came, and how long they were.

Two formats: Azure's CSV (Splitwise, ISCA 2024: ``TIMESTAMP,ContextTokens,GeneratedTokens``) and
Mooncake's JSON lines (FAST'25: ``timestamp`` in ms, ``input_length``, ``output_length`` and
``hash_ids``, one for each 512 tokens of the prompt; equal ids are equal tokens).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from hecate.errors import ConfigError

MOONCAKE_BLOCK = 512
AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


@dataclass(frozen=True)
class Arrival:
    """A request of a trace. ``blocks``: ids of the prompt's blocks of tokens, where it has them."""

    at_s: float
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()


@dataclass(frozen=True)
class Trace:
    """``arrivals`` in order of time, the first at 0. ``block_tokens``: 0 without shared blocks."""

    name: str
    block_tokens: int
    arrivals: tuple[Arrival, ...]


def read_trace(path: Path) -> Trace:
    """A trace by its file's ending, ``.csv`` or ``.jsonl``.

    Raises ``ConfigError`` for a file that is not there, or a line that is none of a trace.
    """
    if path.suffix not in (".csv", ".jsonl"):
        raise ConfigError(
            f"{path} is no trace",
            got=f"a file that ends in {path.suffix or 'nothing'}",
            expected="Azure's .csv or Mooncake's .jsonl",
        )
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = _azure(file, path) if path.suffix == ".csv" else _mooncake(file, path)
            arrivals = sorted(lines, key=lambda arrival: arrival.at_s)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the trace {path} cannot be read", got=str(error)) from error
    if not arrivals:
        raise ConfigError(f"the trace {path} is empty", expected="a request at least")
    start_s = arrivals[0].at_s
    block_tokens = MOONCAKE_BLOCK if path.suffix == ".jsonl" else 0
    moved = tuple(
        Arrival(each.at_s - start_s, each.prompt_tokens, each.output_tokens, each.blocks)
        for each in arrivals
    )
    return Trace(path.stem, block_tokens, moved)


def _azure(file: Iterator[str], path: Path) -> Iterator[Arrival]:
    rows = csv.DictReader(file)
    if missing := [name for name in AZURE_COLUMNS if name not in (rows.fieldnames or ())]:
        raise ConfigError(
            f"{path} is no trace of Azure's",
            got=",".join(rows.fieldnames or ()) or "nothing",
            expected=f"columns {','.join(AZURE_COLUMNS)}; {missing[0]} is missing",
        )
    for row in rows:
        try:
            at_s = datetime.fromisoformat(row["TIMESTAMP"]).timestamp()
            yield _arrival(at_s, int(row["ContextTokens"]), int(row["GeneratedTokens"]))
        except (TypeError, ValueError) as error:
            raise _bad_line(path, rows.line_num, error) from error


def _mooncake(file: Iterator[str], path: Path) -> Iterator[Arrival]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            blocks = tuple(int(block) for block in row["hash_ids"])
            prompt, output = int(row["input_length"]), int(row["output_length"])
            yield _arrival(float(row["timestamp"]) / 1000, prompt, output, blocks)
        except (KeyError, TypeError, ValueError) as error:
            raise _bad_line(path, number, error) from error


def _arrival(at_s: float, prompt: int, output: int, blocks: tuple[int, ...] = ()) -> Arrival:
    if prompt < 0 or output < 0:
        raise ValueError(f"lengths {prompt} and {output}")
    return Arrival(at_s, prompt, output, blocks)


def _bad_line(path: Path, number: int, error: Exception) -> ConfigError:
    return ConfigError(
        f"line {number} of the trace {path} cannot be read",
        got=f"{type(error).__name__}: {error}",
        fix="mend the line or leave it out",
    )
