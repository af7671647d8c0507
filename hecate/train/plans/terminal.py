"""A comparison of policies on a terminal, or in a file where colours are left out."""

from __future__ import annotations

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from collectives.placement import Placement
from hecate.planner.replay import ReplayedStep
from hecate.train.plans.compare import FIGURES, Comparison, PolicyReplay, Ratios

BARS = "▁▂▃▄▅▆▇█"
COLOURS = ("green4", "green3", "chartreuse3", "yellow3", "gold3", "orange3", "dark_orange3", "red3")
MOST_LAYERS = 6
WIDEST_STRIP = 100
ALL_WIDE = 1000


def show(comparison: Comparison, console: Console, *, step: int, layer: int) -> None:
    """The table, each policy's strips, and who holds what in step ``step``, layer ``layer``.

    ``step`` counts from 1, 0 being the last. ``layer`` -1: the placement of the layer that is least
    even by its first owners, and strips of the least even ones. Raises ``ConfigError`` for others.
    """
    place = comparison.place_of(step)
    worst = np.argsort(-comparison.replays[0].imbalance_before().mean(0), kind="stable").tolist()
    if layer >= 0:
        comparison.check_layer(layer)
        worst = [layer]
    # A file or a pipe has no width of its own: there a row is a line.
    wide = console if console.is_terminal else Console(file=console.file, width=ALL_WIDE)
    steps = comparison.replays[0].steps
    wide.print(
        f"steps {steps[0].step + 1} to {steps[-1].step + 1} of {comparison.source} on "
        f"{comparison.world_size} ranks; predicted loads are off by "
        f"{comparison.prediction_errors.mean():.1%} of slots (worst layer and step "
        f"{comparison.prediction_errors.max():.1%})",
        highlight=False,
    )
    wide.print(_table(comparison))
    for note in comparison.notes:
        wide.print(Text(f"- {note}"))
    top = max(float(each.imbalance_before().max()) for each in comparison.replays)
    shown = sorted(worst[:MOST_LAYERS])
    width = min(WIDEST_STRIP, console.width - 20) if console.is_terminal else WIDEST_STRIP
    for each in comparison.replays:
        wide.print(Text(f"\n{each.policy}: imbalance over time, 1 to {top:.2f}", style="bold"))
        for number in shown:
            for title, ratios in (
                ("before", each.imbalance_before()),
                ("after", each.imbalance_after()),
            ):
                wide.print(_strip(f"layer {number:<3} {title:<7}", ratios[:, number], top, width))
    for each in comparison.replays:
        wide.print(_placement(each, each.steps[place], worst[0], max(16, width)))


def _table(comparison: Comparison) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("policy")
    for title in FIGURES.values():
        table.add_column(title, justify="right")
    for each in comparison.replays:
        figures = each.figures()
        table.add_row(each.policy, *(_cell(name, figures[name]) for name in FIGURES))
    return table


def _cell(name: str, value: float) -> str:
    match name:
        case "gathered_bytes_per_step":
            return f"{value / 1e6:,.2f} MB"
        case "experts_moved":
            return f"{value:,.0f}"
        case "wait_s_per_step":
            return f"{value * 1e3:,.2f} ms"
        case "idle_copies_per_step" | "missed_experts_per_step":
            return f"{value:,.2f}"
        case "balanced_share":
            return f"{value:.1%}"
    return f"{value:,.3f}"


def binned(values: Ratios, width: int) -> Ratios:
    """At most ``width`` means of neighbouring steps, in order."""
    count = min(width, len(values))
    return np.array([part.mean() for part in np.array_split(values, count)])


def _strip(title: str, values: Ratios, top: float, width: int) -> Text:
    text = Text(f"{title} ")
    for value in binned(values, width):
        share = (value - 1) / (top - 1) if top > 1 else 0.0
        level = min(len(BARS) - 1, max(0, round(share * (len(BARS) - 1))))
        text.append(BARS[level], style=COLOURS[level])
    text.append(f"  {values.mean():.2f}")
    return text


def holder_mark(step: ReplayedStep, layer: int, expert: int, rank: int) -> str:
    """What ``rank`` is to an expert: ``O`` its owner, ``c`` a planned copy, ``+`` a late one."""

    def holds(placements: tuple[Placement, ...]) -> bool:
        return rank in placements[layer].holders[expert]

    if holds(step.owners):
        return "O"
    if holds(step.planned):
        return "c"
    return "+" if holds(step.held) else "·"


def _placement(each: PolicyReplay, step: ReplayedStep, layer: int, width: int) -> Text:
    owners = step.owners[layer]
    text = Text()
    text.append(f"\n{each.policy}: step {step.step + 1}, layer {layer}", style="bold")
    text.append(" (experts across; O owner, c copy, + copy after the gate; slots before, after)\n")
    styles = {"O": "bold", "c": "green3", "+": "orange3", "·": "dim"}
    for start in range(0, owners.num_chunks, width):
        experts = range(start, min(start + width, owners.num_chunks))
        for rank in range(owners.world_size):
            text.append(f"rank {rank:<4} ")
            for expert in experts:
                mark = holder_mark(step, layer, expert, rank)
                text.append(mark, style=styles[mark])
            before, after = step.owned_YW[layer, rank], step.computed_YW[layer, rank]
            text.append(f"  {before:>8,} {after:>8,}\n")
    text.rstrip()
    return text
