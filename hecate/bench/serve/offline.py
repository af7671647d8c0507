"""Throughput of both sides with all requests there at once, in turns, cell by cell."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hecate.bench.serve.contender import Contender
from hecate.bench.serve.sides import MODES, VLLM, Setting, offline
from hecate.errors import HecateError
from serving.bench.arrivals import as_json, closed

Say = Callable[[str], None]
TURN_S = 600.0
WARM_UP = -1  # a seed that no round has


@dataclass(frozen=True)
class Cell:
    """``batch`` requests at once, of so many tokens each."""

    batch: int
    prompt_tokens: int
    output_tokens: int

    @property
    def title(self) -> str:
        return f"batch {self.batch}, {self.prompt_tokens} in, {self.output_tokens} out"


def rates(
    cells: Sequence[Cell],
    contenders: Mapping[str, Contender],
    rounds: int,
    vocabulary: int,
    say: Say,
) -> dict[Cell, dict[str, list[float]]]:
    """Output tokens a second of each side in each round of each cell; they take turns."""
    found: dict[Cell, dict[str, list[float]]] = {}
    for cell in cells:
        each: dict[str, list[float]] = {name: [] for name in contenders}
        for number in range(WARM_UP, rounds):
            names = list(contenders)
            for name in names if number % 2 else reversed(names):
                rate = one(cell, contenders[name], number, vocabulary)
                if number != WARM_UP:
                    each[name].append(rate)
        found[cell] = each
        best = ", ".join(f"{name} {max(rate):,.0f}" for name, rate in each.items())
        say(f"{cell.title}: {best} tokens/s at best")
    return found


def one(cell: Cell, contender: Contender, seed: int, vocabulary: int) -> float:
    """Output tokens a second; every seed has other prompts."""
    asked = closed(
        cell.batch,
        cell.prompt_tokens,
        cell.output_tokens,
        vocabulary=vocabulary,
        seed=hash((seed, cell)),
    )
    answer = contender.ask({"do": "replay", "asked": as_json(asked)}, timeout_s=TURN_S)
    wrong = [timing["error"] for timing in answer.get("timings", ()) if timing["error"]]
    assert not wrong, f"{contender.name}: {wrong[0]}"
    return cell.batch * cell.output_tokens / float(answer["seconds"])


def fastest_mode(setting: Setting, cell: Cell, vocabulary: int, folder: Path, say: Say) -> str:
    """Which of vLLM's modes does ``cell`` fastest; what fails to start is none."""
    best, best_rate = "", 0.0
    for mode in MODES:
        try:
            with offline(VLLM, replace(setting, mode=mode), folder) as (contender, _):
                rate = max(one(cell, contender, seed, vocabulary) for seed in (WARM_UP, 0, 1))
        except HecateError as error:
            say(f"vLLM {mode}: {error}")
            continue
        say(f"vLLM {mode}: {rate:,.0f} tokens/s at {cell.title}")
        if rate > best_rate:
            best, best_rate = mode, rate
    return best
