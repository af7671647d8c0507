"""A comparison of policies as an SVG picture."""

from __future__ import annotations

import numpy as np

from hecate.planner.replay import ReplayedStep
from hecate.svg import Svg, shade
from hecate.train.plans.compare import Comparison, PolicyReplay, Ratios
from hecate.train.plans.terminal import binned, holder_mark

SCALE = ((46, 139, 87), (247, 220, 111), (192, 57, 43))  # even, uneven, worst
MARKS = {"O": "#34495e", "c": "#27ae60", "+": "#e67e22", "·": "#ecf0f1"}
LEGEND = {"O": "owner", "c": "copy", "+": "copy after the gate", "·": "not held"}
STRIP_WIDTH, STRIP_HEIGHT = 360.0, 9.0
MARGIN, LABEL, GAP = 20.0, 70.0, 40.0
CELL = 10.0
MOST_GRID_WIDTH = 640.0


def draw(comparison: Comparison, *, step: int, layer: int) -> str:
    """One panel a policy: strips of every layer's imbalance over time, before and after placement,
    beside who holds what in step ``step`` (from 1; 0 the last) of ``layer`` (-1: the least even).

    Raises ``ConfigError`` for a step or layer that there is not.
    """
    place = comparison.place_of(step)
    before_Y = comparison.replays[0].imbalance_before().mean(0)
    if layer >= 0:
        comparison.check_layer(layer)
    else:
        layer = int(np.argmax(before_Y))
    top = max(float(each.imbalance_before().max()) for each in comparison.replays)
    num_experts = comparison.replays[0].steps[0].owners[layer].num_chunks
    cell = min(CELL, MOST_GRID_WIDTH / num_experts)
    rows = max(len(before_Y) * STRIP_HEIGHT, comparison.world_size * cell)
    panel = rows + 52
    width = 2 * MARGIN + 2 * (LABEL + STRIP_WIDTH) + GAP + LABEL + num_experts * cell + 80
    svg = Svg(width, 2 * MARGIN + 40 + panel * len(comparison.replays))
    _head(svg, comparison, top)
    for number, each in enumerate(comparison.replays):
        y = MARGIN + 40 + number * panel
        figures = each.figures()
        svg.text(MARGIN, y + 12, each.policy, size=13, weight="bold")
        svg.text(
            MARGIN + 130,
            y + 12,
            f"max/mean {figures['imbalance_before_mean']:.2f} before, "
            f"{figures['imbalance_after_mean']:.2f} after; "
            f"{figures['gathered_bytes_per_step'] / 1e6:.1f} MB a step; "
            f"{figures['experts_moved']:.0f} experts moved; "
            f"{figures['balanced_share']:.1%} of balanced",
        )
        for side, (title, ratios) in enumerate(
            (("before", each.imbalance_before()), ("after", each.imbalance_after()))
        ):
            x = MARGIN + LABEL + side * (LABEL + STRIP_WIDTH)
            svg.text(x, y + 28, title, fill="#666")
            _strips(svg, x, y + 32, ratios, top)
        x = MARGIN + 2 * (LABEL + STRIP_WIDTH) + GAP + LABEL
        _grid(svg, x, y + 32, each, each.steps[place], layer, cell)
    return svg.render()


def _head(svg: Svg, comparison: Comparison, top: float) -> None:
    steps = comparison.replays[0].steps
    svg.text(
        MARGIN,
        MARGIN + 4,
        f"{comparison.source}: steps {steps[0].step + 1} to {steps[-1].step + 1} on "
        f"{comparison.world_size} ranks",
        size=14,
        weight="bold",
    )
    x, y = MARGIN, MARGIN + 16
    svg.text(x, y + 9, "max/mean of ranks: 1", fill="#666")
    x += 118
    for part in range(40):
        svg.rect(x + part * 3, y, 3, 10, fill=shade(part / 39, SCALE))
    svg.text(x + 126, y + 9, f"{top:.2f}", fill="#666")
    x += 190
    for mark, name in LEGEND.items():
        svg.rect(x, y, 10, 10, fill=MARKS[mark])
        svg.text(x + 14, y + 9, name, fill="#666")
        x += 30 + 7 * len(name)


def _strips(svg: Svg, x: float, y: float, ratios: Ratios, top: float) -> None:
    """A row for each layer, from the first step to the last."""
    for layer, values in enumerate(ratios.T):
        row = y + layer * STRIP_HEIGHT
        svg.text(x - 6, row + STRIP_HEIGHT - 1, f"layer {layer}", size=8, anchor="end")
        bins = binned(values, int(STRIP_WIDTH / 2))
        wide = STRIP_WIDTH / len(bins)
        for place, value in enumerate(bins):
            share = (value - 1) / (top - 1) if top > 1 else 0.0
            svg.rect(x + place * wide, row, wide, STRIP_HEIGHT - 1, fill=shade(share, SCALE))


def _grid(
    svg: Svg,
    x: float,
    y: float,
    each: PolicyReplay,
    step: ReplayedStep,
    layer: int,
    cell: float,
) -> None:
    """Ranks down, experts across, and the slots of each rank before and after."""
    owners = step.owners[layer]
    svg.text(x, y - 4, f"step {step.step + 1}, layer {layer}: ranks x experts", fill="#666")
    for rank in range(owners.world_size):
        row = y + rank * cell
        svg.text(x - 6, row + cell - 2, f"rank {rank}", size=8, anchor="end")
        for expert in range(owners.num_chunks):
            mark = holder_mark(step, layer, expert, rank)
            title = f"{each.policy}, rank {rank}, expert {expert}: {LEGEND[mark]}"
            left = x + expert * cell
            svg.rect(left, row, cell - 1, cell - 1, fill=MARKS[mark], title=title)
        before, after = step.owned_YW[layer, rank], step.computed_YW[layer, rank]
        svg.text(
            x + owners.num_chunks * cell + 6, row + cell - 2, f"{before:,} → {after:,}", size=8
        )
