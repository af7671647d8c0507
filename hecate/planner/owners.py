"""New owners for experts whose loads have settled: balance without a single copy. Pure.

Algorithm 2 of the paper (2502.02581, section 4.3) deals the experts of all layers out again. This
starts from who owns them now instead, and swaps pairs between the busiest and the least busy rank
of a layer while that lowers the busiest: memory stays equal, and few experts move.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from collectives.placement import Placement

Loads = npt.NDArray[np.float64]


def even_owners(num_experts: Sequence[int], world_size: int) -> tuple[Placement, ...]:
    """An equal share of each layer, the odd ones rotating over ranks from layer to layer."""
    placements, dealt = [], 0
    for experts in num_experts:
        placements.append(Placement.even(experts, world_size, rotation=dealt))
        dealt = (dealt + experts % world_size) % world_size
    return tuple(placements)


def swap_owners(loads_E: Loads, owners: Placement, *, most_swaps: int) -> Placement:
    """One layer's owners after up to ``most_swaps`` swaps, each of which lowers the busiest rank.

    The same object where none does.
    """
    owner_E = np.array(owners.owners)
    load_r = np.bincount(owner_E, weights=loads_E, minlength=owners.world_size)
    moved = False
    for _ in range(most_swaps):
        high = int(np.argmax(load_r))
        best: tuple[float, int, int, int] | None = None
        for low in np.argsort(load_r, kind="stable").tolist():
            if low == high:
                continue
            gap = float(load_r[high] - load_r[low])
            here, there = np.flatnonzero(owner_E == high), np.flatnonzero(owner_E == low)
            if not len(here) or not len(there):
                continue
            difference = loads_E[here][:, None] - loads_E[there][None]
            # after the swap the two ranks' loads differ by |gap - 2 * difference|
            left = np.abs(gap - 2 * difference)
            mine, theirs = np.unravel_index(int(np.argmin(left)), left.shape)
            busier = float(load_r[high] + load_r[low] + left[mine, theirs]) / 2
            candidate = (busier, low, int(here[mine]), int(there[theirs]))
            if busier < load_r[high] and (best is None or candidate < best):
                best = candidate
        if best is None:
            break
        _, low, sent, taken = best
        shift = float(loads_E[sent] - loads_E[taken])
        owner_E[sent], owner_E[taken] = low, high
        load_r[high] -= shift
        load_r[low] += shift
        moved = True
    return Placement.from_owners(owner_E.tolist(), owners.world_size) if moved else owners


def imbalance(loads_E: Loads, owners: Placement) -> float:
    """The busiest rank's load over the mean when every slot goes to its expert's owner."""
    load_r = np.bincount(np.array(owners.owners), weights=loads_E, minlength=owners.world_size)
    total = float(load_r.sum())
    return float(load_r.max()) * len(load_r) / total if total else 1.0
