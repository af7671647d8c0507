"""What came of it all: outcomes and samples become rows and summary."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pydantic import JsonValue

from hecate.bench.soak.checks import SERVER_FAILED, Kind

Row = Mapping[str, JsonValue]

FAULTS: tuple[Kind, ...] = ("wrong", "unclear", "hung")
MIB = 1 << 20
SHOWN = 3  # faults of each kind, in words

COLUMNS = {
    "what": "what",
    "requests": "requests",
    "answered": "answered",
    "refused": "refused",
    "failed": "failed, told so",
    "left": "left",
    "faults": "faults",
    "p50_s": "p50 s",
    "p99_s": "p99 s",
    "processes": "processes",
    "rss_mib": "RSS MiB",
    "rss_mib_per_hour": "MiB/h",
    "fds": "handles",
    "fds_growth": "grown by",
    "threads": "threads",
    "threads_growth": "grown by",
}


@dataclass(frozen=True)
class Outcome:
    """Of one request: what it was, what came of it, when it was sent, and how long it took."""

    what: str
    kind: Kind
    why: str
    status: int
    sent_s: float
    seconds: float


@dataclass(frozen=True)
class Sample:
    """A process at a time. ``role``: what it is there for; ``ours``: whether its code is Hecate's,
    and not only Ray's."""

    at_s: float
    process_id: int
    role: str
    ours: bool
    rss_bytes: int
    fds: int
    threads: int


@dataclass(frozen=True)
class Quiet:
    """A moment without load. ``idle_s``: until no answer was under way; ``leaked_blocks``: held
    then, beside those of the prefix cache."""

    at_s: float
    seconds: float
    idle_s: float
    leaked_blocks: int


@dataclass(frozen=True)
class Course:
    """A whole soak. ``kills_s``: when replicas were killed; ``replaced_s``: how long each time
    until there were as many again; ``abandoned``: of the tokens that clients asked for who left,
    the share that was made."""

    begin_s: float
    end_s: float
    outcomes: Sequence[Outcome]
    samples: Sequence[Sample]
    quiets: Sequence[Quiet]
    kills_s: Sequence[float]
    replaced_s: Sequence[float]
    abandoned: float


@dataclass(frozen=True)
class Growth:
    """Of one process after its warm-up: by hour, and in all."""

    sample: Sample
    rss_mib_per_hour: float
    fds: int
    threads: int


def growth(samples: Sequence[Sample], *, warm_up_s: float, least_s: float) -> Growth | None:
    """Between the medians of the first and the last third of what one process was, ``warm_up_s``
    after its first sample; None where that is less than ``least_s``."""
    warm = [one for one in samples if one.at_s >= samples[0].at_s + warm_up_s]
    if len(warm) < 6 or warm[-1].at_s - warm[0].at_s < least_s:
        return None
    third = len(warm) // 3
    first, last = warm[:third], warm[-third:]

    def grown(values: Sequence[float], earlier: Sequence[float]) -> float:
        return statistics.median(values) - statistics.median(earlier)

    hours = grown([one.at_s for one in last], [one.at_s for one in first]) / 3600
    rss = grown([one.rss_bytes for one in last], [one.rss_bytes for one in first])
    return Growth(
        warm[-1],
        rss / MIB / hours,
        round(grown([one.fds for one in last], [one.fds for one in first])),
        round(grown([one.threads for one in last], [one.threads for one in first])),
    )


def growths(samples: Sequence[Sample], *, warm_up_s: float, least_s: float) -> list[Growth]:
    """Of every process that lived for long enough."""
    by_process: dict[int, list[Sample]] = {}
    for sample in samples:
        by_process.setdefault(sample.process_id, []).append(sample)
    found = (growth(one, warm_up_s=warm_up_s, least_s=least_s) for one in by_process.values())
    return [one for one in found if one is not None]


def longest_outage_s(course: Course) -> float:
    """The longest time under load in which no request was answered."""
    answered = [
        one.sent_s + one.seconds
        for one in course.outcomes
        if one.kind == "answered" and one.what != "quiet"
    ]
    borders = [course.begin_s, *answered, course.end_s]
    for quiet in course.quiets:
        borders += [quiet.at_s, quiet.at_s + quiet.seconds]
    gaps = [(b - a, a) for a, b in pairwise(sorted(borders))]
    calm = [(quiet.at_s, quiet.at_s + quiet.seconds) for quiet in course.quiets]
    under_load = (gap for gap, a in gaps if not any(begin <= a < end for begin, end in calm))
    return max(under_load, default=0.0)


def outcome_rows(outcomes: Iterable[Outcome]) -> list[Row]:
    """One for each kind of request, in the order of their names, and one for all."""
    by_what: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_what.setdefault(outcome.what, []).append(outcome)
    everything = [one for ones in by_what.values() for one in ones]
    groups = [*sorted(by_what.items()), ("all requests", everything)]
    return [_outcome_row(what, ones) for what, ones in groups]


def _outcome_row(what: str, outcomes: Sequence[Outcome]) -> Row:
    kinds = Counter(one.kind for one in outcomes)
    times = sorted(one.seconds for one in outcomes if one.kind == "answered")
    return {
        "what": what,
        "requests": len(outcomes),
        **{kind: kinds[kind] for kind in ("answered", "refused", "failed", "left")},
        "faults": sum(kinds[kind] for kind in FAULTS),
        "p50_s": statistics.median(times) if times else None,
        "p99_s": times[math.ceil(0.99 * len(times)) - 1] if times else None,
    }


def process_rows(found: Sequence[Growth]) -> list[Row]:
    """One for each role: the process of it that grew most."""
    by_role: dict[str, list[Growth]] = {}
    for one in found:
        by_role.setdefault(one.sample.role, []).append(one)
    rows: list[Row] = []
    for role, ones in sorted(by_role.items()):
        worst = max(ones, key=lambda one: one.rss_mib_per_hour)
        rows.append(
            {
                "what": role,
                "processes": len(ones),
                "rss_mib": worst.sample.rss_bytes / MIB,
                "rss_mib_per_hour": worst.rss_mib_per_hour,
                "fds": worst.sample.fds,
                "fds_growth": max(one.fds for one in ones),
                "threads": worst.sample.threads,
                "threads_growth": max(one.threads for one in ones),
                "ours": worst.sample.ours,
            }
        )
    return rows


def summary(course: Course, found: Sequence[Growth]) -> dict[str, float]:
    """The figures to compare; NaN for what no process lived long enough for."""
    kinds = Counter(one.kind for one in course.outcomes)
    ours = [one for one in found if one.sample.ours]
    rays = [one for one in found if not one.sample.ours]
    return {
        "requests": len(course.outcomes),
        "answered": kinds["answered"],
        "failed": kinds["failed"],
        "wrong_answers": kinds["wrong"],
        "hung_clients": kinds["hung"],
        "unclear_errors": kinds["unclear"],
        "server_errors": sum(one.status == SERVER_FAILED for one in course.outcomes),
        "leaked_blocks": max((one.leaked_blocks for one in course.quiets), default=math.nan),
        "idle_s": max((one.idle_s for one in course.quiets), default=math.nan),
        "abandoned_tokens": course.abandoned,
        "rss_mib_per_hour": max((one.rss_mib_per_hour for one in ours), default=math.nan),
        "ray_rss_mib_per_hour": max((one.rss_mib_per_hour for one in rays), default=math.nan),
        "fds_growth": max((one.fds for one in ours), default=math.nan),
        "threads_growth": max((one.threads for one in ours), default=math.nan),
        "kills": len(course.kills_s),
        "replaced_s": max(course.replaced_s, default=math.nan),
        "longest_outage_s": longest_outage_s(course),
    }


def fault_notes(outcomes: Iterable[Outcome]) -> list[str]:
    """What is wrong, in words: the first few of each kind."""
    by_kind: dict[str, Counter[str]] = {}
    for one in outcomes:
        if one.kind in FAULTS:
            by_kind.setdefault(one.kind, Counter())[f"{one.what}: {one.why}"] += 1
    return [
        f"{kind}, {count} times: {text}"
        for kind, counted in by_kind.items()
        for text, count in counted.most_common(SHOWN)
    ]


def failures(outcomes: Iterable[Outcome], kills_s: Sequence[float]) -> dict[str, JsonValue]:
    """What was told to requests that failed, and how long after the last kill at most."""
    told: Counter[str] = Counter()
    latest_s = 0.0
    for one in outcomes:
        if one.kind == "failed":
            told[one.why.partition(";")[0][:120]] += 1
            end_s = one.sent_s + one.seconds
            latest_s = max(latest_s, min((end_s - k for k in kills_s if k <= end_s), default=1e9))
    return {"told": dict(told.most_common(8)), "latest_after_a_kill_s": latest_s}
