"""What happened to a run: starts, pauses, jumps of the loss, changes of owners. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hecate.report.curves import Training
from hecate.report.records import Floats, Metrics, Recovery, Start
from hecate.report.spent import Spent

WINDOW = 20
LEAST_WINDOW = 5
SPREADS = 6.0
SHARE = 0.1
MOST_OF_A_KIND = 12
MOST_MOVES = 6
LEAST_S = 0.1  # of a pause that is worth a word


@dataclass(frozen=True)
class Event:
    """``kind``: start, resume, pause, back, spike, lost (not finite), moved. ``step``: after it."""

    step: int
    kind: str
    text: str
    time_s: float = 0.0


def events(
    metrics: Metrics,
    training: Training,
    starts: Sequence[Start],
    spent: Spent,
    recoveries: Sequence[Recovery] = (),
) -> list[Event]:
    """By step. Of each kind at most ``MOST_OF_A_KIND``, with a word on how many more there were."""
    found = [
        *_starts(starts, spent, recoveries),
        *_pauses(starts, spent),
        *_back(metrics),
        *_lost(training),
        *_jumps(training, "loss", "loss"),
        *_jumps(training, "grad_norm", "gradient norm"),
        *_skips(training),
        *_moves(training),
    ]
    return sorted(found, key=lambda event: event.step)


def jumps(values: Floats) -> list[int]:
    """Where ``values`` leap: the first of each run of places that lie far above those before.

    Far is ``SPREADS`` times their usual distance from their median, and ``SHARE`` of it; those
    before are up to ``WINDOW``, at least ``LEAST_WINDOW``.
    """
    found: list[int] = []
    if len(values) <= LEAST_WINDOW:
        return found
    padded = np.concatenate([np.full(WINDOW, np.nan), values[:-1]])
    before = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)
    known = np.isfinite(before).sum(1) >= LEAST_WINDOW
    middle, spread = np.zeros(len(values)), np.zeros(len(values))
    middle[known] = np.nanmedian(before[known], axis=1)
    spread[known] = np.nanmedian(np.abs(before[known] - middle[known, None]), axis=1)
    far = np.maximum(SPREADS * 1.4826 * spread, SHARE * np.abs(middle))
    leaps = known & np.isfinite(values) & (values - middle > far)
    for place in np.flatnonzero(leaps).tolist():
        if not found or not leaps[place - 1]:
            found.append(place)
    return found


def _starts(starts: Sequence[Start], spent: Spent, recoveries: Sequence[Recovery]) -> list[Event]:
    made = []
    open_recoveries = list(recoveries)
    away = {pause.after_step: pause.seconds for pause in spent.pauses if pause.taken_up}
    before: Start | None = None
    for start in starts:
        ranks = ""
        if start.num_ranks:
            ranks = f" on {counted(start.num_ranks, 'rank')}"
            if start.num_nodes > 1:
                ranks += f" of {start.num_nodes} nodes"
            if before is not None and before.num_ranks not in (0, start.num_ranks):
                ranks += f", before {before.num_ranks}"
        what = f"taken up again after step {start.step:,}" if start.step else "begun"
        kind = "resume" if start.step else "start"
        why = f", since {start.cause}" if start.cause else ""
        lost_s = away.pop(start.step, 0.0)
        mended = next(
            (
                r
                for r in open_recoveries
                if start.cause and r.step == start.step and r.cause == start.cause
            ),
            None,
        )
        gap = f"; {duration(lost_s)} without training" if lost_s >= LEAST_S else ""
        if mended is not None:
            open_recoveries.remove(mended)
            gap = _mended(mended)
        made.append(Event(start.step, kind, what + ranks + why + gap, start.time_s))
        before = start
    return capped(made, "more starts")


def _mended(recovery: Recovery) -> str:
    again = recovery.at_step - recovery.step
    steps = f", {counted(again, 'step')} again" if again > 0 else ""
    took_s = sum(recovery.seconds.values())
    return f" in step {recovery.at_step + 1:,}{steps}; the first was done {duration(took_s)} later"


def _pauses(starts: Sequence[Start], spent: Spent) -> list[Event]:
    """But for those that a start tells of."""
    told = {start.step for start in starts}
    made = []
    for pause in spent.pauses:
        if pause.seconds < LEAST_S or (pause.taken_up and pause.after_step in told):
            continue
        why = "with a new start between them" if pause.taken_up else "without a new start"
        text = f"{duration(pause.seconds)} between two lines that no training accounts for, {why}"
        made.append(Event(pause.after_step, "pause", text))
    return capped(made, "more pauses")


def _back(metrics: Metrics) -> list[Event]:
    made = [
        Event(step, "back", f"the file goes back to step {step:,}: what came later counts")
        for step in metrics.damage.back_to
    ]
    return capped(made, "more times")


def _lost(training: Training) -> list[Event]:
    made = []
    for name, text in (("loss", "loss"), ("grad_norm", "gradient norm")):
        bad = [
            line.step
            for line in training.lines
            if name in line.values and not np.isfinite(line.values[name])
        ]
        if bad:
            lines = f"{counted(len(bad), 'line')}, the first" if len(bad) > 1 else "the line"
            made.append(Event(bad[0], "lost", f"{text} not finite in {lines} of step {bad[0]:,}"))
    return made


def _jumps(training: Training, name: str, text: str) -> list[Event]:
    values = training.values(name)
    made = []
    for place in jumps(values):
        before = values[max(0, place - WINDOW) : place]
        usual = float(np.nanmedian(before))
        step = int(training.steps[place])
        made.append(Event(step, "spike", f"{text} {values[place]:.4g}, usually {usual:.4g} before"))
    return capped(made, f"more jumps of the {text}")


def _skips(training: Training) -> list[Event]:
    """Where the count of steps that were left out, of runs that keep one, grew."""
    counts = training.values("skipped_steps")
    made = []
    before = 0.0
    for place, count in enumerate(counts.tolist()):
        if count > before:
            text = f"{counted(round(count - before), 'step')} left out"
            made.append(Event(int(training.steps[place]), "spike", text))
        before = count if np.isfinite(count) else before
    return capped(made, "more lines with steps left out")


def _moves(training: Training) -> list[Event]:
    """The greatest changes of owners, most first into the list, then by step."""
    moved = training.values("load/moved_experts")
    places = np.flatnonzero(np.isfinite(moved) & (moved > 0))
    most = places[np.argsort(-moved[places], kind="stable")][:MOST_MOVES]
    made = []
    for place in sorted(most.tolist()):
        step, over = int(training.steps[place]), int(training.intervals[place])
        since = f"steps {step - over + 1:,} to {step:,}" if over > 1 else f"step {step:,}"
        text = f"{counted(int(moved[place]), 'expert')} changed owners in {since}"
        made.append(Event(step, "moved", text))
    if len(places) > len(most):
        rest = float(moved[places].sum() - moved[most].sum())
        text = f"{rest:,.0f} more changes of owners in {len(places) - len(most):,} other lines"
        made.append(Event(int(training.steps[-1]), "moved", text))
    return made


def capped(made: list[Event], more: str) -> list[Event]:
    """The first ``MOST_OF_A_KIND``, and one that says how many there were besides."""
    if len(made) <= MOST_OF_A_KIND:
        return made
    kept, rest = made[:MOST_OF_A_KIND], made[MOST_OF_A_KIND:]
    return [*kept, Event(rest[0].step, rest[0].kind, f"{len(rest):,} {more} from here on")]


def counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """As people say it, to two units: ``3 h 12 min``."""
    if seconds < 1:
        return f"{seconds * 1e3:.0f} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    whole = round(seconds)
    for (name, size), (low_name, low_size) in zip(units, units[1:], strict=False):
        if whole >= size:
            low = whole % size // low_size
            return f"{whole // size} {name}" + (f" {low} {low_name}" if low else "")
    return f"{whole} s"
