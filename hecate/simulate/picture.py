"""Simulated scaling as an SVG picture: a panel for each workload, a line for each policy. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hecate.simulate.sweep import Compared
from hecate.svg import Svg

COLOURS = (
    "#7f8c8d",
    "#c0392b",
    "#e67e22",
    "#8e44ad",
    "#d35fb7",
    "#2980b9",
    "#16a085",
    "#b7950b",
    "#34495e",
    "#27ae60",
)
WIDTH, HEIGHT = 340.0, 230.0
LEFT, TOP, GAP, BELOW = 64.0, 58.0, 76.0, 44.0
LEGEND_WIDTH, LEGEND_ROW = 230.0, 16.0
TICKS = 4


def draw_scaling(cluster: str, rows: Sequence[Compared]) -> str:
    """Tokens a second of one device over the number of devices, as ``sweep`` found them.

    A point whose memory does not fit its device is hollow. The title says that all is simulated.
    """
    workloads = list(dict.fromkeys(row.workload.name for row in rows))
    policies = list(dict.fromkeys(row.outcome.strategy.name for row in rows))
    legend_rows = math.ceil(len(policies) / max(1, len(workloads)))
    svg = Svg(
        LEFT + len(workloads) * (WIDTH + GAP), TOP + HEIGHT + BELOW + legend_rows * LEGEND_ROW + 8
    )
    svg.text(12, 20, f"Simulated: {cluster}", size=14, weight="bold")
    svg.text(
        12,
        36,
        "tokens a second of one device, over devices; hollow: its memory does not fit",
        fill="#666",
    )
    for number, name in enumerate(workloads):
        mine = [row for row in rows if row.workload.name == name]
        _panel(svg, LEFT + number * (WIDTH + GAP), name, mine, policies)
    for number, policy in enumerate(policies):
        x = LEFT + number // legend_rows * LEGEND_WIDTH
        y = TOP + HEIGHT + BELOW + number % legend_rows * LEGEND_ROW
        svg.rect(x, y - 5, 18, 3, fill=_colour(number))
        svg.text(x + 24, y, policy)
    return svg.render()


def _panel(
    svg: Svg, x: float, name: str, rows: Sequence[Compared], policies: Sequence[str]
) -> None:
    top = _round_up(max(_rate(row) for row in rows))
    counts = sorted({row.outcome.devices for row in rows})
    svg.text(x, TOP - 6, name, size=12, weight="bold")
    for tick in range(TICKS + 1):
        y = TOP + HEIGHT * (1 - tick / TICKS)
        svg.line([(x, y), (x + WIDTH, y)], stroke="#ddd")
        svg.text(x - 6, y + 4, f"{top * tick / TICKS:,.4g}", size=9, anchor="end", fill="#666")
    across = {count: x + WIDTH * _place(count, counts) for count in counts}
    for count, place in across.items():
        svg.text(place, TOP + HEIGHT + 14, f"{count:,}", size=9, anchor="middle", fill="#666")
    for number, policy in enumerate(policies):
        mine = [row for row in rows if row.outcome.strategy.name == policy]
        points = [
            (across[row.outcome.devices], TOP + HEIGHT * (1 - _rate(row) / top)) for row in mine
        ]
        svg.line(points, stroke=_colour(number), width=1.5)
        for row, (px, py) in zip(mine, points, strict=True):
            fill = _colour(number) if row.fits else "white"
            title = f"simulated: {name}, {policy}, {row.outcome.devices:,} devices: "
            title += f"{_rate(row):,.4g} tokens/s a device, {row.speedup:.2f} x EP"
            svg.rect(px - 2, py - 2, 4, 4, fill=fill, stroke=_colour(number), title=title)


def _rate(row: Compared) -> float:
    return row.outcome.tokens_per_s / row.outcome.devices


def _place(count: int, counts: Sequence[int]) -> float:
    """From 0 to 1, evenly by doublings."""
    first, last = math.log2(counts[0]), math.log2(counts[-1])
    return (math.log2(count) - first) / (last - first) if last > first else 0.5


def _round_up(value: float) -> float:
    """The next number of two digits and zeros."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return math.ceil(value / unit) * unit


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]
