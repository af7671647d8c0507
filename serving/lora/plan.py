"""Which rows of a step go through which adapter, and in which form.

Padded, every row is a product of its own with a copy of its adapter (BGMV, Punica 2310.18547): one
batched product for all rows of a slot class, however many adapters. In segments, rows are sorted by
adapter and each adapter is one product with all its rows: nothing is copied or padded, but each is
launched by itself. Which is quicker for the few rows that an adapter has, the measured costs say.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from serving.lora.costs import FormCosts, Group
from serving.lora.slots import Place


@dataclass(frozen=True)
class Padded:
    """Rows of one slot class; ``slot_R``: the index of each one's slot in it."""

    width: int
    slot_R: torch.Tensor
    start: int
    stop: int


@dataclass(frozen=True)
class Segment:
    """Rows ``[start, stop)`` of the sorted ones, all of the adapter at ``place``.

    ``rows``: which of the step's they are, a slice where they lie in a row.
    """

    place: Place
    start: int
    stop: int
    rows: slice | torch.Tensor


@dataclass(frozen=True)
class Plan:
    """``row_R``: rows of the step that have an adapter, sorted; the forms say where among them.

    ``place_T``: of each row, 0 for no adapter, else one more than its place's number in ``places``;
    what a layer of experts, which sorts anew, goes by. ``whole``: every row has an adapter, in this
    very order.
    """

    row_R: torch.Tensor
    whole: bool
    padded: tuple[Padded, ...]
    segments: tuple[Segment, ...]
    places: tuple[Place, ...]
    place_T: torch.Tensor

    def rows_of(self, x_TI: torch.Tensor) -> torch.Tensor:
        """Of a step's rows, those with an adapter, sorted."""
        return x_TI if self.whole else x_TI[self.row_R]


def make_plan(
    runs: Sequence[tuple[int, Place | None]],
    costs: FormCosts,
    device: torch.device,
    arriving: Collection[Place] = (),
) -> Plan | None:
    """``runs``: how many of the next rows have which adapter. None where no row has any.

    ``arriving``: places that are being filled, whose rows are segments whatever that costs.
    """
    rows: dict[Place, list[int]] = {}
    numbers: dict[Place | None, int] = {None: 0}
    place_T: list[int] = []
    for count, place in runs:
        number = numbers.setdefault(place, len(numbers))
        if place is not None:
            rows.setdefault(place, []).extend(range(len(place_T), len(place_T) + count))
        place_T += [number] * count
    if not rows:
        return None
    places = tuple(rows)
    alone = costs.alone([Group(len(rows[place]), place.width) for place in places])
    alone = [apart or place in arriving for place, apart in zip(places, alone, strict=True)]
    together = [place for place, apart in zip(places, alone, strict=True) if not apart]
    order: list[int] = []
    padded = []
    for width in sorted({place.width for place in together}):
        start, slots = len(order), []
        for place in (place for place in together if place.width == width):
            order += rows[place]
            slots += [place.index] * len(rows[place])
        padded.append(Padded(width, torch.tensor(slots, device=device), start, len(order)))
    segments = []
    for place in (place for place, apart in zip(places, alone, strict=True) if apart):
        own, stop = rows[place], len(order) + len(rows[place])
        if own[-1] - own[0] == len(own) - 1:
            which: slice | torch.Tensor = slice(own[0], own[-1] + 1)
        else:
            which = torch.tensor(own, device=device)
        segments.append(Segment(place, len(order), stop, which))
        order += own
    return Plan(
        row_R=torch.tensor(order, device=device),
        whole=order == list(range(len(place_T))),
        padded=tuple(padded),
        segments=tuple(segments),
        places=places,
        place_T=torch.tensor(place_T, device=device),
    )
