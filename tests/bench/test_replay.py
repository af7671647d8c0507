"""Replayed loads are the trace's to the slot."""

from __future__ import annotations

import numpy as np
import torch

from hecate.bench.replay import Replay, counted
from hecate.bench.routing_traces import recorded_trace, synthetic_traces


def test_a_replay_has_the_counts_of_its_step_and_layer():
    counts_SYE = np.array([[[3, 1, 2, 0], [1, 1, 1, 3]], [[0, 3, 0, 3], [2, 1, 2, 1]]])
    replay = Replay(counts_SYE, top_k=2, rank=1)
    own_TK = torch.zeros(3, 2, dtype=torch.int64)
    assert torch.equal(replay(0, own_TK), own_TK), "before the first step the router chooses"
    for step in (1, 0):
        replay.prepare(step)
        for layer in range(2):
            chosen = replay(layer, own_TK).flatten().numpy()
            assert np.bincount(chosen, minlength=4).tolist() == counts_SYE[step, layer].tolist()
    other_TK = torch.zeros(5, 2, dtype=torch.int64)
    assert torch.equal(replay(0, other_TK), other_TK), "another batch keeps its choices"


def test_ranks_have_the_same_counts_and_other_tokens():
    rotating = next(t for t in synthetic_traces(16, 2, 2) if t.name == "rotating")
    counts_SYE = counted(rotating.shares, steps=2, layers=3, num_tokens=64, top_k=2)
    assert counts_SYE.shape == (2, 3, 16)
    assert (counts_SYE.sum(2) == 128).all()
    own_TK = torch.zeros(64, 2, dtype=torch.int64)
    chosen = []
    for rank in range(2):
        replay = Replay(counts_SYE, top_k=2, rank=rank)
        replay.prepare(1)
        chosen.append(replay(2, own_TK))
    assert not torch.equal(*chosen)
    assert torch.equal(*(c.flatten().bincount(minlength=16) for c in chosen))


def test_a_recording_is_replayed_in_proportion():
    recorded_SYE = np.array([[[6, 2, 0, 0]], [[1, 1, 3, 3]]])
    trace = recorded_trace("real", recorded_SYE, 1)
    counts_SYE = counted(trace.shares, steps=3, layers=1, num_tokens=16, top_k=1)
    assert counts_SYE[:, 0].tolist() == [[12, 4, 0, 0], [2, 2, 6, 6], [2, 2, 6, 6]]
