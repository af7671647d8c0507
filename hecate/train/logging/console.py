"""A run seen by the person who waits for it: a live bar, or plain lines where there is none."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from hecate.train.logging.config import LoggingConfig
from hecate.train.logging.protocol import Run, Value


class ConsoleSink:
    """Shows step, loss, perplexity, bits per byte, speed, time left, gradient norm, load, memory.

    On a terminal the bar and its figures are redrawn in place; evaluations are lines that stay.
    Elsewhere (a file, a scheduler's log) every ``log`` is one line without control characters.
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
        self._figures = Text(no_wrap=True, overflow="ellipsis")
        self._bar = Progress(
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>3.0f}%  {task.fields[left]}"),
            console=console,
            expand=True,
        )
        self._task = self._bar.add_task("", total=total_steps, completed=resumed_step, left="")
        self._live = Live(Group(self._bar, self._figures), console=console, refresh_per_second=4)
        if console.is_terminal:
            self._live.start()

    @classmethod
    def open(cls, config: LoggingConfig, run: Run) -> Self:
        return cls(Console(), total_steps=run.total_steps, resumed_step=run.resumed_step)

    def log(self, step: int, values: Mapping[str, Value]) -> None:
        training = _training_figures(values)
        evaluation = _quality_figures(values, "eval/")
        if self._console.is_terminal:
            left = self._time_left(step)
            self._bar.update(self._task, completed=step, left=f"{left} left" if left else "")
            if training:
                self._figures.plain = "  ".join(training)
            self._live.refresh()
        elif training:
            left = self._time_left(step)
            self._print(step, [*training, *([f"left {left}"] if left else [])])
        if evaluation:
            self._print(step, ["held out:", *evaluation])

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


def _training_figures(values: Mapping[str, Value]) -> list[str]:
    figures = _quality_figures(values, "")
    if (speed := _number(values, "tokens_per_s")) is not None:
        figures.append(f"{_short(speed)} tok/s")
    if (norm := _number(values, "grad_norm")) is not None:
        figures.append(f"grad {norm:.3g}")
    load = values.get("load/experts_max_over_mean")
    if isinstance(load, (list, tuple)) and load:
        figures.append(f"load {max(load):.2f}")  # the worst layer's
    memory = _number(values, "memory/device_bytes") or _number(values, "memory/resident_bytes")
    if memory:
        figures.append(f"mem {memory / 2**30:.1f} GiB")
    return figures


def _quality_figures(values: Mapping[str, Value], prefix: str) -> list[str]:
    figures = []
    for name, short, digits in (("loss", "loss", 4), ("perplexity", "ppl", 1)):
        if (number := _number(values, prefix + name)) is not None:
            figures.append(
                f"{short} {number:.{digits}f}" if number < 1e5 else f"{short} {number:.2g}"
            )
    if (bits := _number(values, prefix + "bits_per_byte")) is not None:
        figures.append(f"bits/byte {bits:.3f}")
    return figures


def _number(values: Mapping[str, Value], name: str) -> float | None:
    value = values.get(name)
    return value if isinstance(value, (int, float)) else None


def _short(number: float) -> str:
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f}{suffix}"
    return f"{number:.0f}"
