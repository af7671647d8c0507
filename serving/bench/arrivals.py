"""Requests to send: at random, or those of a trace at a scale that fits."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from serving.bench.traces import Arrival, Trace

FIRST_TOKEN = 16  # ids below it may be special


@dataclass(frozen=True)
class Asked:
    """A request: when it is sent, its tokens, and how many it gets back. ``adapter``: a name, or
    empty for the model itself."""

    at_s: float
    prompt: tuple[int, ...]
    output_tokens: int
    adapter: str = ""


@dataclass(frozen=True)
class Scaled:
    """A trace at another scale.

    ``length_factor`` is what all lengths, those of shared blocks too, were multiplied with;
    ``cut`` is the share of requests that were too long even so, and were cut to what fits.
    """

    trace: Trace
    length_factor: float
    cut: float


def random_prompt(rng: random.Random, tokens: int, vocabulary: int) -> tuple[int, ...]:
    return tuple(rng.randrange(FIRST_TOKEN, vocabulary) for _ in range(tokens))


def closed(
    batch: int, prompt_tokens: int, output_tokens: int, *, vocabulary: int, seed: int
) -> list[Asked]:
    """``batch`` requests at once, of random tokens, none like another."""
    rng = random.Random(seed)
    return [
        Asked(0.0, random_prompt(rng, prompt_tokens, vocabulary), output_tokens)
        for _ in range(batch)
    ]


def at_random(
    count: int,
    rate: float,
    *,
    prompt_tokens: tuple[int, int],
    output_tokens: tuple[int, int],
    vocabulary: int,
    seed: int,
) -> list[Asked]:
    """Poisson arrivals of ``rate`` a second; lengths evenly between their bounds, both included."""
    rng = random.Random(seed)
    at_s = 0.0
    asked = []
    for _ in range(count):
        at_s += rng.expovariate(rate)
        prompt = random_prompt(rng, rng.randint(*prompt_tokens), vocabulary)
        asked.append(Asked(at_s, prompt, rng.randint(*output_tokens)))
    return asked


def scale(trace: Trace, *, mean_prompt: int, most_prompt: int, most_output: int) -> Scaled:
    """``trace`` with prompts of ``mean_prompt`` tokens on average and at most what fits.

    Answers are scaled with the same factor; nothing is shorter than a token.
    """
    arrivals = trace.arrivals
    mean = sum(arrival.prompt_tokens for arrival in arrivals) / len(arrivals)
    factor = mean_prompt / max(mean, 1.0)
    scaled, cut = [], 0
    for arrival in arrivals:
        prompt = max(1, round(arrival.prompt_tokens * factor))
        output = max(1, round(arrival.output_tokens * factor))
        cut += prompt > most_prompt or output > most_output
        scaled.append(
            replace(
                arrival,
                prompt_tokens=min(prompt, most_prompt),
                output_tokens=min(output, most_output),
            )
        )
    block_tokens = max(1, round(trace.block_tokens * factor)) if trace.block_tokens else 0
    return Scaled(Trace(trace.name, block_tokens, tuple(scaled)), factor, cut / len(arrivals))


def of_trace(trace: Trace, count: int, rate: float, *, vocabulary: int, seed: int) -> list[Asked]:
    """The first ``count`` requests of ``trace``, its time stretched to ``rate`` a second.

    Equal blocks have equal tokens; what follows a prompt's last block is the request's own.
    """
    arrivals = trace.arrivals[:count]
    stretch = len(arrivals) / rate / max(arrivals[-1].at_s, 1e-9)
    return [
        Asked(
            arrival.at_s * stretch,
            _prompt(arrival, trace, seed, number, vocabulary),
            arrival.output_tokens,
        )
        for number, arrival in enumerate(arrivals)
    ]


def _prompt(
    arrival: Arrival, trace: Trace, seed: int, number: int, vocabulary: int
) -> tuple[int, ...]:
    tokens: list[int] = []
    for block in arrival.blocks:
        tokens += random_prompt(
            random.Random(f"{seed} block {block}"), trace.block_tokens, vocabulary
        )
    missing = arrival.prompt_tokens - len(tokens)
    if missing > 0:
        tokens += random_prompt(random.Random(f"{seed} own {number}"), missing, vocabulary)
    return tuple(tokens[: arrival.prompt_tokens])


def total_tokens(asked: Iterable[Asked]) -> int:
    """Of all answers."""
    return sum(each.output_tokens for each in asked)


def as_json(asked: Sequence[Asked]) -> list[list[object]]:
    """For a worker in another process, which has no adapters; ``from_json`` reads it."""
    return [[each.at_s, list(each.prompt), each.output_tokens] for each in asked]


def from_json(rows: Iterable[Sequence[object]]) -> list[Asked]:
    return [
        Asked(float(str(at_s)), tuple(prompt), int(str(tokens)))  # type: ignore[arg-type]
        for at_s, prompt, tokens in rows
    ]
