"""Lengths into rows: each whole in one row, as few rows as best fit finds. Pure."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def best_fit(lengths: NDArray[np.int64], room: int) -> NDArray[np.int64]:
    """The row, from 0, of each of ``lengths`` ([N], from the longest to the shortest).

    Each goes to the fullest row that has room for it, else to a new one (best fit decreasing: at
    most 11/9 of the fewest rows, plus one). All must be in 1 to ``room``.
    """
    rows = np.empty(len(lengths), dtype=np.int64)
    num_rows = 0
    with_free: list[list[int]] = [[] for _ in range(room + 1)]
    some = 0  # bit f is set where with_free[f] holds a row
    for place, length in enumerate(lengths.tolist()):
        enough = some >> length
        if enough:
            free = length + (enough & -enough).bit_length() - 1
            row = with_free[free].pop()
            if not with_free[free]:
                some ^= 1 << free
        else:
            free, row = room, num_rows
            num_rows += 1
        rows[place] = row
        free -= length
        if free:
            with_free[free].append(row)
            some |= 1 << free
    return rows
