"""From the steps of all strategies to rows and a summary. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median, quantiles

from pydantic import JsonValue


@dataclass(frozen=True)
class Course:
    """The timed steps of one strategy, in order, each with its number in the trace.

    ``imbalances``: slots of the busiest rank over the mean, as computed; 0 where unknown.
    ``copies``: experts copied, over all layers and ranks. ``slot_bytes``: what copies occupy on a
    rank. ``phases``: seconds of a mean step. ``problem``: why there are no steps.
    """

    steps: tuple[int, ...] = ()
    seconds: tuple[float, ...] = ()
    imbalances: tuple[float, ...] = ()
    copies: tuple[int, ...] = ()
    slot_bytes: int = 0
    phases: Mapping[str, float] = field(default_factory=dict)
    problem: str = ""


@dataclass(frozen=True)
class Standing:
    """All strategies under one trace with one model.

    ``round_steps``: steps that only together say how fast a strategy is. ``stable``: whether loads
    stay as they are. ``given_imbalance``: the trace's own, over ranks that own an even part each.
    ``moe_share``: the part of the ceiling's step that its experts take; 0 where not measured.
    """

    model: str
    trace: str
    stable: bool
    round_steps: int
    given_imbalance: float
    courses: Mapping[str, Course]
    moe_share: float = 0.0


def slowest(ranks: Sequence[Course]) -> Course:
    """One course of all ranks: each step takes as long as its slowest rank."""
    return replace(
        ranks[0],
        seconds=tuple(max(times) for times in zip(*(r.seconds for r in ranks), strict=True)),
        slot_bytes=max(rank.slot_bytes for rank in ranks),
    )


def speed_ratios(ours: Course, other: Course, round_steps: int) -> tuple[float, ...]:
    """How many times faster ours was, round by round, over the steps that both took."""
    ours_s = dict(zip(ours.steps, ours.seconds, strict=True))
    other_s = dict(zip(other.steps, other.seconds, strict=True))
    common = [step for step in ours.steps if step in other_s]
    rounds: dict[int, list[int]] = {}
    for step in common:
        rounds.setdefault((step - ours.steps[0]) // round_steps, []).append(step)
    return tuple(
        sum(other_s[step] for step in steps) / sum(ours_s[step] for step in steps)
        for steps in rounds.values()
    )


def spread(values: Sequence[float]) -> tuple[float, float]:
    """The quartiles; of fewer than four values, the least and the greatest."""
    if len(values) < 4:
        return min(values), max(values)
    low, _, high = quantiles(values, n=4, method="inclusive")
    return low, high


def round_seconds(course: Course, round_steps: int) -> tuple[float, ...]:
    """Seconds of a mean step in each round."""
    rounds: dict[int, list[float]] = {}
    for step, seconds in zip(course.steps, course.seconds, strict=True):
        rounds.setdefault((step - course.steps[0]) // round_steps, []).append(seconds)
    return tuple(sum(taken) / len(taken) for taken in rounds.values())


def rows_of(
    standing: Standing, titles: Mapping[str, str], *, ours: str, ceiling: str
) -> list[dict[str, JsonValue]]:
    """The report's rows of one trace."""
    rows = []
    mine = standing.courses[ours]
    for name, course in standing.courses.items():
        row: dict[str, JsonValue] = {
            "model": standing.model,
            "trace": standing.trace,
            "strategy": titles[name],
            "status": course.problem or "ok",
        }
        if course.problem:
            rows.append(row)
            continue
        taken_s = round_seconds(course, standing.round_steps)
        ratios = speed_ratios(mine, course, standing.round_steps)
        shares = speed_ratios(course, standing.courses[ceiling], standing.round_steps)
        low, high = spread(ratios)
        row |= {
            "ms": 1e3 * median(taken_s),
            "ms_quartiles": [1e3 * seconds for seconds in spread(taken_s)],
            "rounds": len(taken_s),
            "ceiling_share": median(shares),
            "ours_over_it": median(ratios),
            "ours_over_it_quartiles": f"{low:.3f} - {high:.3f}",
            "ours_over_it_rounds": list(ratios),
            "imbalance_given": standing.given_imbalance,
            "imbalance": sum(course.imbalances) / len(course.imbalances) or None,
            "copies": sum(course.copies) / len(course.copies),
            "slot_mib": course.slot_bytes / 2**20,
            "phases_ms": {phase: 1e3 * taken for phase, taken in course.phases.items()},
        }
        rows.append(row)
    return rows


HOT, MOVING = ("hot_1.5", "hot_1.9"), ("rotating", "burst")


def summarise(
    standings: Sequence[Standing],
    *,
    model: str,
    ours: str,
    ceiling: str,
    variants: Collection[str] = (),
) -> dict[str, float]:
    """The summary keys that the standings of ``model`` give.

    The ceiling and ``variants`` of ours are no rivals. Of several traces, the worst counts.
    ``ceiling_margin_moving`` is ``min_margin_moving`` with the ceiling in our place: nothing that
    routes as the trace says could do much better.
    """
    mine = {s.trace: s for s in standings if s.model == model}

    def share(trace: str) -> float:
        return median(_against(mine[trace], ours, ceiling))

    def margin(standing: Standing, of: str) -> float:
        others = [
            name
            for name, course in standing.courses.items()
            if name not in (ours, ceiling, *variants) and not course.problem
        ]
        return min(median(_against(standing, of, name)) for name in others)

    return {
        "ceiling_share_real": share("real"),
        "ceiling_share_hot": min(share(trace) for trace in HOT),
        "ceiling_share_rotating": min(share(trace) for trace in MOVING),
        "speedup_vs_ep_hot": median(_against(mine["hot_1.9"], ours, "expert_parallel")),
        "balanced_vs_ep": median(_against(mine["balanced"], ours, "expert_parallel")),
        "min_margin_stable": min(margin(s, ours) for s in mine.values() if s.stable),
        "min_margin_moving": min(margin(s, ours) for s in mine.values() if not s.stable),
        "ceiling_margin_moving": min(margin(s, ceiling) for s in mine.values() if not s.stable),
    }


def _against(standing: Standing, ours: str, other: str) -> tuple[float, ...]:
    return speed_ratios(standing.courses[ours], standing.courses[other], standing.round_steps)


def against_bound(
    taken: Mapping[str, Mapping[str, Sequence[float]]], fraction: int
) -> dict[str, JsonValue]:
    """What a sparse gather takes beyond a launch, over its part of the fastest dense gather.

    ``taken``: seconds of ``dense``, ``sparse`` and ``launch`` by way; the fastest way of each kind
    counts, by its median.
    """
    medians = {
        kind: {way: median(seconds) for way, seconds in ways.items()}
        for kind, ways in taken.items()
    }
    best = {kind: min(ways, key=lambda way: ways[way]) for kind, ways in medians.items()}
    dense_s, sparse_s, launch_s = (medians[k][best[k]] for k in ("dense", "sparse", "launch"))
    return {
        "dense": best["dense"],
        "dense_ms": 1e3 * dense_s,
        "sparse": best["sparse"],
        "sparse_ms": 1e3 * sparse_s,
        "launch_ms": 1e3 * launch_s,
        "vs_bound": (sparse_s - launch_s) / (dense_s / fraction),
    }


def hidden_fraction(
    step_s: Sequence[float], skipped_s: Sequence[float], alone_s: Sequence[float]
) -> float:
    """The part of the gathers' time that a step does not show.

    ``step_s`` and ``skipped_s``: a step with its gathers and the next one with the same placement
    and none, pair by pair; ``alone_s``: the gathers of a step with nothing else running.
    """
    shown_s = median([step - skipped for step, skipped in zip(step_s, skipped_s, strict=True)])
    return 1 - shown_s / median(alone_s)
