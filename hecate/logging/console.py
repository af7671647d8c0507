"""A run seen by the person who waits for it: a live bar, or plain lines where there is none."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

from hecate.logging.config import LoggingConfig
from hecate.logging.protocol import Run, Value

TELLING = ("loss", "left", "speed", "imbalance")
SHORTEST_BAR = 4


class ConsoleSink:
    """Shows step, loss, speed, imbalance and time left; where there is room, also perplexity, bits
    per byte, gradient norm and memory.

    On a terminal that is one line, redrawn in place, with as many figures as its width has room
    for; evaluations are lines that stay. Elsewhere (a file, a scheduler's log) every ``log`` is one
    line with all of them, without control characters.
    """

    def __init__(
        self,
        console: Console,
        *,
        total_steps: int,
        resumed_step: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console
        self._total_steps = total_steps
        self._resumed_step = resumed_step
        self._clock = clock
        self._started = clock()
        whole = Column(no_wrap=True)
        self._bar = Progress(
            TextColumn("step {task.completed:.0f}/{task.total:.0f}", table_column=whole),
            BarColumn(bar_width=None, table_column=Column(ratio=1)),
            TextColumn("{task.percentage:>3.0f}%", table_column=whole),
            TextColumn("{task.fields[figures]}", table_column=whole, markup=False),
            console=console,
            expand=True,
        )
        self._task = self._bar.add_task("", total=total_steps, completed=resumed_step, figures="")
        self._live = Live(self._bar, console=console, refresh_per_second=4)
        if console.is_terminal:
            self._live.start()

    @classmethod
    def open(cls, config: LoggingConfig, run: Run) -> Self:
        return cls(run.console, total_steps=run.total_steps, resumed_step=run.resumed_step)

    def log(self, step: int, values: Mapping[str, Value]) -> None:
        training = _training_figures(values, self._time_left(step))
        evaluation = _quality_figures(values, "eval/")
        if self._console.is_terminal:
            room = self._console.width - len(f"step {step}/{self._total_steps} 100%") - SHORTEST_BAR
            shown = _fitting(training, room)
            self._bar.update(self._task, completed=step)
            if shown:
                self._bar.update(self._task, figures="  ".join(shown))
            self._live.refresh()
        elif training:
            self._print(step, list(training.values()))
        if evaluation:
            self._print(step, ["held out:", *evaluation.values()])

    def close(self) -> None:
        if self._live.is_started:
            self._live.stop()

    def _print(self, step: int, figures: list[str]) -> None:
        line = "  ".join([f"step {step}/{self._total_steps}", *figures])
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _time_left(self, step: int) -> str:
        done = step - self._resumed_step
        if done <= 0 or step >= self._total_steps:
            return ""
        seconds = (self._clock() - self._started) / done * (self._total_steps - step)
        minutes, second = divmod(round(seconds), 60)
        hour, minute = divmod(minutes, 60)
        return f"{hour}:{minute:02d}:{second:02d}"


def _training_figures(values: Mapping[str, Value], left: str) -> dict[str, str]:
    figures = _quality_figures(values, "")
    if (speed := _number(values, "tokens_per_s")) is not None:
        figures["speed"] = f"{_short(speed)} tok/s"
    if (norm := _number(values, "grad_norm")) is not None:
        figures["grad"] = f"grad {norm:.3g}"
    if imbalance := _imbalance(values):
        figures["imbalance"] = imbalance
    memory = _number(values, "memory/device_bytes") or _number(values, "memory/resident_bytes")
    if memory:
        figures["mem"] = f"mem {memory / 2**30:.1f} GiB"
    if figures and left:
        figures["left"] = f"left {left}"
    return figures


def _imbalance(values: Mapping[str, Value]) -> str:
    """The busiest rank's load over the mean in the worst layer, by owners alone and as computed.

    With a single rank, the most loaded expert's over the mean.
    """
    owners, computed, experts = (
        [one for one in of if isinstance(one, (int, float))] if isinstance(of, Sequence) else []
        for of in (
            values.get("load/ranks_max_over_mean"),
            values.get("load/computed_max_over_mean"),
            values.get("load/experts_max_over_mean"),
        )
    )
    if owners and computed and max(*owners, *computed) > 1:
        return f"imbalance {max(owners):.2f}->{max(computed):.2f}"
    return f"load {max(experts):.2f}" if experts else ""


def _fitting(figures: Mapping[str, str], room: int) -> list[str]:
    """Those that ``room`` characters hold, the most telling ones first chosen; in their order."""
    chosen: set[str] = set()
    for name in (*TELLING, *figures):
        if name in figures and name not in chosen:
            width = len(figures[name]) + 2
            if width > room:
                break
            chosen.add(name)
            room -= width
    return [text for name, text in figures.items() if name in chosen]


def _quality_figures(values: Mapping[str, Value], prefix: str) -> dict[str, str]:
    figures = {}
    for name, short, digits in (("loss", "loss", 4), ("perplexity", "ppl", 1)):
        if (number := _number(values, prefix + name)) is not None:
            shown = f"{number:.{digits}f}" if number < 1e5 else f"{number:.2g}"
            figures[short] = f"{short} {shown}"
    if (bits := _number(values, prefix + "bits_per_byte")) is not None:
        figures["bits"] = f"bits/byte {bits:.3f}"
    return figures


def _number(values: Mapping[str, Value], name: str) -> float | None:
    value = values.get(name)
    return value if isinstance(value, (int, float)) else None


def _short(number: float) -> str:
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f}{suffix}"
    return f"{number:.0f}"
