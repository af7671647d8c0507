"""The figures at the head of a report, and what its reader has to know about the rest."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hecate.report.curves import MOST_POINTS, Training
from hecate.report.events import counted, duration
from hecate.report.maps import ExpertMaps, LayerMaps
from hecate.report.records import Damage, Floats, LoadSteps, Metrics, Start
from hecate.report.spent import Spent


@dataclass(frozen=True)
class Figure:
    """A number with its name, and a line that puts it in its place."""

    name: str
    value: str
    beside: str = ""


@dataclass(frozen=True)
class RunFolder:
    """All that was read: ``config`` as a tree, and as the text of its file."""

    name: str
    config: Mapping[str, Any]
    config_text: str
    metrics: Metrics
    loads: LoadSteps
    starts: tuple[Start, ...]
    starts_recorded: bool
    starts_damage: Damage
    checkpoints: tuple[str, ...]

    @property
    def planned_steps(self) -> int:
        """How many steps the run was to have; 0 if unknown."""
        return number_at(self.config, "train", "steps")

    @property
    def done_steps(self) -> int:
        training = self.metrics.training
        logged = training[-1].step if training else 0
        return max(logged, int(self.loads.steps[-1]) if len(self.loads.steps) else 0)

    @property
    def finished(self) -> bool:
        return bool(self.planned_steps) and self.done_steps >= self.planned_steps


def number_at(config: Mapping[str, Any], *keys: str) -> int:
    """The whole number under ``keys``; 0 where there is none."""
    value: Any = config
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def headline(run: RunFolder) -> str:
    """One sentence: how far it came."""
    lines = [line for line, _ in run.metrics.in_order() if math.isfinite(line.time_s)]
    until = f", last heard of on {moment(lines[-1].time_s)}" if lines else ""
    done, planned = f"{run.done_steps:,}", f"{run.planned_steps:,}"
    if run.finished:
        return f"Finished: {done} steps{until.replace('last heard of', 'ended')}."
    of = f" of {planned}" if run.planned_steps else ""
    return f"Stopped, or still going, at step {done}{of}{until}."


def figures(run: RunFolder, training: Training, spent: Spent) -> list[Figure]:
    """The few that everybody asks for; those that were not logged are left out."""
    found = []
    losses = _known(training.values("loss"))
    if len(losses):
        first = f"from {losses[0]:.3f} in the first line" if len(losses) > 1 else ""
        found.append(Figure("Loss", f"{losses[-1]:.3f}", first))
    if run.metrics.evaluations:
        last = run.metrics.evaluations[-1].values
        beside = [
            f"{last[name]:.{digits}f} {text}"
            for name, text, digits in (
                ("eval/bits_per_byte", "bits per byte", 3),
                ("eval/perplexity", "perplexity", 1),
            )
            if math.isfinite(last.get(name, math.nan))
        ]
        found.append(
            Figure("Held out", f"{last.get('eval/loss', math.nan):.3f}", ", ".join(beside))
        )
    speeds, shares = _known(training.values("tokens_per_s")), _known(training.values("mfu"))
    if len(speeds):
        of = f"median; {np.median(shares):.0%} of the devices' best" if len(shares) else "median"
        found.append(Figure("Tokens per second", f"{np.median(speeds):,.0f}", of))
    before = _known(training.layers("load/ranks_max_over_mean"))
    after = _known(training.layers("load/computed_max_over_mean"))
    if len(before) and len(after):
        worst = f"worst {before.max():.2f}\u00a0→\u00a0{after.max():.2f}"
        text = f"{before.mean():.2f}\u00a0→\u00a0{after.mean():.2f}"
        found.append(Figure("Busiest rank over mean", text, f"before → after; {worst}"))
    for name, where in (("peak_device", "device"), ("peak_resident", "host")):
        peaks = _known(training.values(f"memory/{name}_bytes"))
        if len(peaks):
            found.append(Figure("Peak memory", size(peaks.max()), f"{where}, rank 0"))
            break
    tokens = run.done_steps * number_at(run.config, "train", "batch_sequences")
    tokens *= number_at(run.config, "data", "sequence_tokens")
    worked = duration(spent.total_s - spent.paused_s)
    beside_steps = ", ".join([*([f"{short(tokens)} tokens"] if tokens else []), worked])
    of = f" of {run.planned_steps:,}" if run.planned_steps and not run.finished else ""
    found.append(Figure("Steps", f"{run.done_steps:,}{of}", beside_steps))
    return found


def missing(run: RunFolder, training: Training, experts: ExpertMaps | None) -> list[str]:
    """What this report lacks, and what of the run's files was passed over."""
    said = []
    if not len(training.steps):
        said.append("No line of training was logged (metrics.jsonl): there are no curves.")
    elif not run.metrics.evaluations:
        said.append("No evaluation was logged: there is no held-out loss.")
    if not len(run.loads.steps):
        said.append(
            "The run kept no loads (loads.jsonl)"
            + (
                f": its experts are drawn from the {len(training.steps):,} logged lines alone, of "
                "the last step of each."
                if experts
                else ": there is no picture of its experts."
            )
        )
    elif run.loads.begun:
        said.append(f"Loads were kept from step {run.loads.begun + 1:,} on.")
    if len(training.steps) and not training.layers("load/computed_max_over_mean").size:
        said.append("No load after placement was logged: only what the routers chose is drawn.")
    if not run.starts_recorded:
        said.append("The run kept no starts (starts.jsonl): what it ran on is not known.")
    if not run.config:
        said.append("There is no readable config.yaml.")
    for file, damage in (
        ("metrics.jsonl", run.metrics.damage),
        ("loads.jsonl", run.loads.damage),
        ("starts.jsonl", run.starts_damage),
    ):
        said += _damage(file, damage)
    return said


def _damage(file: str, damage: Damage) -> list[str]:
    said = []
    if damage.cut:
        said.append(f"The last line of {file} is unfinished, as a kill leaves it, and left out.")
    if damage.unreadable:
        lines = counted(damage.unreadable, "line")
        said.append(f"{lines} of {file} cannot be read and {_are(damage.unreadable)} left out.")
    if damage.repeated:
        lines = counted(damage.repeated, "line")
        said.append(
            f"{lines} of {file} {_are(damage.repeated)} of steps that were run again later; only "
            "the later ones count."
        )
    return said


def _are(number: int) -> str:
    return "is" if number == 1 else "are"


def how_drawn(training: Training, layers: LayerMaps, experts: ExpertMaps | None) -> list[str]:
    """What was put together so that the page stays small, and what figures speak of."""
    said = []
    lines = len(training.steps)
    if lines > MOST_POINTS:
        said.append(
            f"Curves: {lines:,} logged lines in {MOST_POINTS} points, each the mean of up to "
            f"{math.ceil(lines / MOST_POINTS):,}, in a band from the least to the greatest of them."
        )
    elif lines:
        said.append(f"Curves: each of the {counted(lines, 'logged line')} is a point.")
    if layers.lines_of_column > 1:
        said.append(
            f"Maps of layers: a column is the mean of up to {layers.lines_of_column:,} logged "
            "lines, and each line speaks of the last step of its interval."
        )
    if experts and experts.steps_of_column > 1:
        said.append(
            f"Maps of experts: a column stands for up to {experts.steps_of_column:,} recorded "
            f"steps and is the mean of {experts.read_of_column} of them, evenly spread; a burst "
            "between those is not seen. Loads are kept to within 2 %."
        )
    said.append(
        "Phases and memory are those of rank 0; copies, bytes and changes of owners are over all "
        "ranks. hecate plan RUN says what other policies would have made of the same loads."
    )
    return said


def _known(values: Floats) -> Floats:
    return values[np.isfinite(values)]


def size(num_bytes: float) -> str:
    """``1.2 GiB``."""
    for unit, of in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if num_bytes >= of:
            return f"{num_bytes / of:.1f} {unit}"
    return f"{num_bytes:.0f} bytes"


def short(number: float) -> str:
    """``1.2 M``."""
    for unit, of in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= of:
            return f"{number / of:.1f} {unit}"
    return f"{number:.0f}"


def moment(time_s: float) -> str:
    """A Unix time in UTC, to the minute; "" where it is none."""
    try:
        when = datetime.datetime.fromtimestamp(time_s, datetime.UTC)
    except (OverflowError, OSError, ValueError):
        return ""
    return f"{when:%Y-%m-%d %H:%M} UTC"
