"""Which chunks travel in a sparse gather of one in eight."""

from __future__ import annotations

from collectives.placement import Placement
from hecate.bench.sparse_gather import FRACTION, NUM_CHUNKS, one_in_eight


def test_an_eighth_of_the_chunks_goes_everywhere_alike_from_each_rank():
    owners = Placement.even(NUM_CHUNKS, 2)
    after = one_in_eight(owners)
    assert after.contains(owners)
    travelling = [chunk for chunk, holders in enumerate(after.holders) if holders == (0, 1)]
    assert travelling == [0, 8]
    assert len(travelling) * FRACTION == NUM_CHUNKS
