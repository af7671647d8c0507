"""The imbalance of a trace by hand."""

from __future__ import annotations

import numpy as np
import pytest

from hecate.bench.strategies import imbalance_of


def test_layers_follow_each_other_and_steps_are_averaged():
    # busiest ranks of the two layers: 6 of 8 and 5 of 8; then 4 of 8 and 8 of 8
    counts_SYE = np.array([[[4, 2, 1, 1], [2, 1, 0, 5]], [[1, 3, 2, 2], [8, 0, 0, 0]]])
    assert imbalance_of(counts_SYE[:1], 2) == pytest.approx((6 + 5) / 8)
    assert imbalance_of(counts_SYE, 2) == pytest.approx((11 / 8 + 12 / 8) / 2)
    assert imbalance_of(counts_SYE, 1) == 1
