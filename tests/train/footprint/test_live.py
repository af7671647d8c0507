"""Bytes of tensors that are alive, counted while they come and go."""

import torch

from hecate.train.footprint.live import LiveBytes


def test_each_storage_counts_once_from_its_first_operation_to_its_end():
    known = torch.ones(8)
    with LiveBytes([known]) as live:
        a = known * 2
        assert live.now_bytes == 32
        view = a.view(2, 4)[0]
        known.add_(1)
        assert live.now_bytes == 32, "neither a view nor what was known adds anything"
        b = torch.zeros(4, dtype=torch.float64)
        assert live.now_bytes == live.peak_bytes == 64
        del a, b
        assert live.now_bytes == 32, "the view still holds its storage"
        del view
        assert (live.now_bytes, live.peak_bytes) == (0, 64)
        live.start_anew()
        assert live.peak_bytes == 0


def test_what_autograd_saves_is_alive_until_the_backward_pass():
    x = torch.ones(16, requires_grad=True)
    with LiveBytes([x]) as live:
        loss = x.exp().sum()
        assert live.now_bytes == 64 + 4, "exp keeps its result"
        loss.backward()
        del loss
        assert live.now_bytes == 64, "the gradient of x alone"
