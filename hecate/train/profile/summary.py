"""What a profile says in numbers: seconds by phase, and what of communication was exposed. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hecate.train.profile.overlap import KINDS, Overlap, overlaps
from hecate.train.profile.phases import NAMES, NO_LAYER, Label, timelines
from hecate.train.profile.trace import STEP, read_spans


@dataclass(frozen=True)
class RankProfile:
    """The recorded steps of one rank, all seconds added up over them.

    ``seconds``: of the host, by the innermost label. ``overlaps``: by kind of collective.
    """

    rank: int
    steps: int
    step_s: float
    seconds: Mapping[Label, float]
    overlaps: Mapping[str, Overlap]


def profile_of(rank: int, events: Iterable[Mapping[str, Any]]) -> RankProfile:
    """The figures of one rank's Chrome trace (its ``traceEvents``)."""
    spans = read_spans(events)
    lines = timelines(spans)
    steps = [span for span in spans if span.name.startswith(STEP)]
    seconds: dict[Label, float] = {}
    for line in list(lines.values())[:1]:  # autograd's own threads run while that of steps waits
        for label, spent_s in line.seconds().items():
            seconds[label] = seconds.get(label, 0.0) + spent_s
    step_s = sum(span.end - span.start for span in steps) / 1e6
    return RankProfile(rank, len(steps), step_s, seconds, overlaps(spans, lines))


def as_record(profiles: Sequence[RankProfile], first_step: int) -> dict[str, Any]:
    """What ``summary.json`` holds; seconds are those of one step, a mean over the recorded ones."""
    return {
        "first_step": first_step + 1,
        "steps": max((profile.steps for profile in profiles), default=0),
        "ranks": [_rank_record(profile) for profile in profiles],
    }


def _rank_record(profile: RankProfile) -> dict[str, Any]:
    per_step = 1 / max(1, profile.steps)
    phases: dict[str, Any] = {}
    for label, spent_s in profile.seconds.items():
        name = NAMES.get(label.phase, label.phase)
        way = "backward_s" if label.backward else "forward_s"
        phase = phases.setdefault(name, {"forward_s": 0.0, "backward_s": 0.0, "layers": {}})
        phase[way] += spent_s * per_step
        if label.layer != NO_LAYER:
            layer = phase["layers"].setdefault(str(label.layer), [0.0, 0.0])
            layer[label.backward] += spent_s * per_step
    order = {name: place for place, name in enumerate(NAMES.values())}
    return {
        "rank": profile.rank,
        "step_s": profile.step_s * per_step,
        "phases": {name: phases[name] for name in sorted(phases, key=lambda n: order.get(n, 99))},
        "communication": {
            kind: {
                "launches": one.launches * per_step,
                "under_way_s": one.under_way_s * per_step,
                "hidden_s": one.hidden_s * per_step,
                "exposed_s": one.exposed_s * per_step,
                "overlap": one.fraction,
            }
            for kind, one in profile.overlaps.items()
        },
    }


def as_table(record: Mapping[str, Any]) -> str:
    """``as_record`` for people: a step's milliseconds, means over the ranks that were recorded."""
    ranks = record["ranks"]
    if not ranks:
        return "no steps were recorded"
    step_s = _mean(rank["step_s"] for rank in ranks)
    last = record["first_step"] + record["steps"] - 1
    lines = [
        f"profile of steps {record['first_step']} to {last}, {len(ranks)} "
        f"rank{'s' * (len(ranks) > 1)}: {1e3 * step_s:.1f} ms a step",
        f"{'phase':<24}{'forward ms':>12}{'backward ms':>13}{'share':>8}",
    ]
    for name in _in_order(NAMES.values(), (rank["phases"] for rank in ranks)):
        forward, backward = (
            _mean(rank["phases"].get(name, {}).get(way, 0.0) for rank in ranks)
            for way in ("forward_s", "backward_s")
        )
        share = (forward + backward) / step_s if step_s else 0.0
        lines.append(f"{name:<24}{1e3 * forward:>12.2f}{1e3 * backward:>13.2f}{share:>8.1%}")
    lines.append(
        f"{'communication':<24}{'under way ms':>12}{'hidden ms':>13}{'exposed ms':>12}"
        f"{'overlap':>9}"
    )
    for kind in _in_order(KINDS, (rank["communication"] for rank in ranks)):
        of = [rank["communication"].get(kind, {}) for rank in ranks]
        moving, hidden, exposed = (
            _mean(one.get(key, 0.0) for one in of)
            for key in ("under_way_s", "hidden_s", "exposed_s")
        )
        overlap = hidden / moving if moving else 0.0
        lines.append(
            f"{kind:<24}{1e3 * moving:>12.2f}{1e3 * hidden:>13.2f}{1e3 * exposed:>12.2f}"
            f"{overlap:>9.0%}"
        )
    return "\n".join(lines)


def _in_order(names: Iterable[str], tables: Iterable[Mapping[str, Any]]) -> list[str]:
    """The names that any table has: those known in their order, then others."""
    present = {name: None for table in tables for name in table}
    known = [name for name in names if name in present]
    return known + [name for name in present if name not in known]


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values) if values else 0.0
