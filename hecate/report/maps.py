"""Loads of layers, and of each layer's experts, over steps: tables to be coloured in. Pure."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hecate.report.bins import Bins
from hecate.report.curves import Training, rounded
from hecate.report.records import Codes, Floats, Ints

MOST_COLUMNS = 240
MOST_CELLS = 800_000  # of all experts' maps together: a byte each, and a third more as text
FEWEST_COLUMNS = 24
STEPS_OF_A_COLUMN = 8

NOTHING = 0
UNKNOWN = 255
LOWEST, OCTAVES = -6.0, 14.0  # code 1 is 2 ** -6 of the mean, code 254 2 ** 8


@dataclass(frozen=True)
class LayerMap:
    """``rows[layer][column]``, None where nothing was logged. ``even``: the value of no concern."""

    key: str
    title: str
    unit: str
    even: float
    rows: list[list[float | None]]


@dataclass(frozen=True)
class LayerMaps:
    """Maps that share their columns: column i is of the steps after ``edges[i]``, up to the next.

    ``lines_of_column``: how many logged lines the fullest is the mean of.
    """

    edges: list[int]
    maps: list[LayerMap]
    lines_of_column: int


@dataclass(frozen=True)
class ExpertMaps:
    """``codes[layer]``: base64 of a byte for each column and expert, column by column.

    A code c of 1 to 254 stands for ``2 ** (LOWEST + OCTAVES * (c - 1) / 253)`` times the layer's
    mean over its experts; 0 for no slot at all, 255 for not known. A column is the mean of at most
    ``read_of_column`` of its ``steps_of_column`` steps.
    """

    edges: list[int]
    num_experts: list[int]
    codes: list[str]
    read_of_column: int
    steps_of_column: int
    source: str


PAIR = {
    "load/ranks_max_over_mean": "By owners alone",
    "load/computed_max_over_mean": "As computed, after placement",
}
FIGURES = {
    "load/straggler_wait_s": ("Wait for the busiest rank", "s"),
    "gather/exposed_s": ("Wait for copies", "s"),
    "load/idle_copies": ("Copies in vain", "count"),
    "load/missed_experts": ("Experts without a copy", "count"),
    "load/experts_max_over_mean": ("Hottest expert over the mean", "ratio"),
    "load/dead_experts": ("Experts without a token", "count"),
    "gather/hidden_s": ("Copies hidden", "s"),
    "router/entropy": ("Entropy of routing over the most there can be", "share"),
    "router/dead_experts": ("Experts without a token since the line before", "count"),
}
TITLES = {name: (title, "ratio") for name, title in PAIR.items()} | FIGURES
ADDED_UP = frozenset(
    "load/straggler_wait_s gather/exposed_s gather/hidden_s load/idle_copies "
    "load/missed_experts".split()
)


def layer_maps(training: Training) -> LayerMaps:
    """The load of ranks before and after placement, then whatever else there is by layer."""
    bins = Bins.of(len(training.steps), MOST_COLUMNS)
    maps = []
    others = [name for name in training.layer_names() if name not in {*PAIR, *FIGURES}]
    for name in (*PAIR, *FIGURES, *others):
        table = training.layers(name)
        if not table.size:
            continue
        if name in ADDED_UP:
            table = table / training.intervals[:, None]
        title, unit = TITLES.get(name, (name, ""))
        rows = [rounded(row, 4) for row in bins.means(table).T]
        even = 1.0 if unit == "ratio" or name == "router/entropy" else 0.0
        maps.append(LayerMap(name, title, unit, even, rows))
    return LayerMaps(bins.edges(training.steps, training.begun), maps, bins.most_in_one)


def expert_maps(
    steps: Ints, begun: int, read: Callable[[int], list[Floats]], source: str
) -> ExpertMaps | None:
    """The share of each layer's slots that each expert had, over ``steps``.

    ``read(i)`` gives each layer's slots, ``[E]``, of item i; [] where it has none. None where no
    item has any.
    """
    first: list[Floats] = next((found for i in range(len(steps)) if (found := read(i))), [])
    if not first:
        return None
    sizes = [len(slots_E) for slots_E in first]
    most = max(FEWEST_COLUMNS, min(MOST_COLUMNS, MOST_CELLS // max(1, sum(sizes))))
    bins = Bins.of(len(steps), most)
    columns: list[list[Codes]] = [[] for _ in sizes]
    for number in range(len(bins)):
        tables = [read(place) for place in bins.picked(number, STEPS_OF_A_COLUMN)]
        for layer, size in enumerate(sizes):
            shares = [_over_mean(table, layer, size) for table in tables]
            columns[layer].append(coded(_mean(shares, size)))
    return ExpertMaps(
        edges=bins.edges(steps, begun),
        num_experts=sizes,
        codes=[base64.b64encode(np.concatenate(each).tobytes()).decode() for each in columns],
        read_of_column=min(STEPS_OF_A_COLUMN, bins.most_in_one),
        steps_of_column=bins.most_in_one,
        source=source,
    )


def coded(ratios_E: Floats) -> Codes:
    """Loads over their mean as the codes of ``ExpertMaps``, right to within 2 %."""
    codes = np.full(len(ratios_E), UNKNOWN, dtype=np.uint8)
    codes[ratios_E == 0] = NOTHING
    some = np.isfinite(ratios_E) & (ratios_E > 0)
    place = (np.log2(ratios_E[some]) - LOWEST) / OCTAVES * 253
    codes[some] = 1 + np.clip(np.round(place), 0, 253).astype(np.uint8)
    return codes


def _over_mean(table: Sequence[Floats], layer: int, size: int) -> Floats:
    if layer >= len(table) or len(table[layer]) != size or not table[layer].sum() > 0:
        return np.full(size, np.nan)
    over: Floats = table[layer] / table[layer].mean()
    return over


def _mean(shares: list[Floats], size: int) -> Floats:
    known = [share for share in shares if np.isfinite(share).all()]
    return np.mean(known, axis=0) if known else np.full(size, np.nan)
