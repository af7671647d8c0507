"""Latencies of both sides under load that does not wait for them, and of a prompt seen before."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hecate.bench.serve.contender import Contender
from serving.bench.arrivals import Asked, as_json, at_random, closed, of_trace, scale
from serving.bench.timings import Latencies, Timing, latencies
from serving.bench.traces import Trace

Say = Callable[[str], None]
REPLAY_S = 900.0
SHARES = (0.3, 0.6, 0.9)
PREFIX_TOKENS = 2048
OWN_TOKENS = 16


@dataclass(frozen=True)
class Demand:
    """Requests of one kind: ``make(count, rate, seed)``. ``remark``: what was done to them."""

    title: str
    make: Callable[[int, float, int], list[Asked]]
    remark: str = ""


@dataclass(frozen=True)
class Load:
    """How both sides did at the same requests at the same times."""

    demand: str
    share: float
    rate: float
    found: Mapping[str, Latencies]


def random_demand(
    vocabulary: int,
    prompt_tokens: tuple[int, int] = (32, 384),
    output_tokens: tuple[int, int] = (16, 96),
) -> Demand:
    def make(count: int, rate: float, seed: int) -> list[Asked]:
        return at_random(
            count,
            rate,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            vocabulary=vocabulary,
            seed=seed,
        )

    (least_in, most_in), (least_out, most_out) = prompt_tokens, output_tokens
    title = f"random lengths: {least_in}-{most_in} in, {least_out}-{most_out} out"
    return Demand(title, make)


def trace_demand(trace: Trace, vocabulary: int) -> Demand:
    scaled = scale(trace, mean_prompt=192, most_prompt=1536, most_output=256)

    def make(count: int, rate: float, seed: int) -> list[Asked]:
        return of_trace(scaled.trace, count, rate, vocabulary=vocabulary, seed=seed)

    remark = (
        f"{trace.name}: lengths times {scaled.length_factor:.3g}"
        f"{', shared blocks too' if trace.block_tokens else ''}; {scaled.cut:.1%} cut to 1536 in, "
        "256 out; time stretched to the rates"
    )
    return Demand(trace.name, make, remark)


def loads(
    demand: Demand, contenders: Mapping[str, Contender], *, count: int, say: Say
) -> list[Load]:
    """``demand`` at shares of what the slower side sustains when all of it is there at once."""
    burst = [Asked(0.0, each.prompt, each.output_tokens) for each in demand.make(count, 1.0, 0)]
    sustained = min(
        count / float(_replay(contender, burst)[1]) for contender in contenders.values()
    )
    found = []
    for number, share in enumerate(SHARES, 1):
        rate = share * sustained
        asked = demand.make(count, rate, number)
        each = {name: latencies(_replay(one, asked)[0]) for name, one in contenders.items()}
        found.append(Load(demand.title, share, rate, each))
        p99 = ", ".join(f"{name} {found.ttft_p99_s * 1e3:,.0f} ms" for name, found in each.items())
        say(f"{demand.title}, {share:.0%} of {sustained:.2f} requests/s: TTFT p99 {p99}")
    return found


def prefix_gain(
    contender: Contender,
    vocabulary: int,
    *,
    rounds: int,
    prefix_tokens: int = PREFIX_TOKENS,
    own_tokens: int = OWN_TOKENS,
) -> tuple[float, float]:
    """TTFT in seconds of a prompt whose first tokens are new, and are known; medians."""
    cold: list[float] = []
    warm: list[float] = []
    for seed in range(rounds):
        (shared,) = closed(1, prefix_tokens, 2, vocabulary=vocabulary, seed=10_000 + seed)
        for number, seconds in enumerate((cold, warm)):
            own = closed(1, own_tokens, 2, vocabulary=vocabulary, seed=20_000 + 2 * seed + number)
            asked = Asked(0.0, shared.prompt + own[0].prompt, 2)
            seconds.append(_replay(contender, [asked])[0][0].first_s)
    return statistics.median(cold), statistics.median(warm)


def _replay(contender: Contender, asked: Sequence[Asked]) -> tuple[list[Timing], float]:
    order = {"do": "replay", "asked": as_json(asked)}
    answer = contender.ask(order, timeout_s=REPLAY_S)
    return [Timing(**timing) for timing in answer["timings"]], float(answer["seconds"])
