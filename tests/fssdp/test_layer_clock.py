"""Seconds by layer, from marks that are given: what is charged, what is capped, what waits."""

from __future__ import annotations

import pytest
import torch
from gpus import gpus, no_host_wait

from hecate.fssdp.layer_clock import LayerClock, Spent

CPU = torch.device("cpu")


def test_spans_add_up_by_layer_and_by_what_they_went_to():
    clock = LayerClock(3, CPU)
    clock.add(Spent.EXPERTS, 0, 1.0, 3.5)
    clock.add(Spent.EXPERTS, 0, 4.0, 4.5)
    clock.add(Spent.EXPERTS, 2, 0.0, 1.0)
    clock.add(Spent.EXPOSED, 2, 7.0, 7.25)
    assert clock.take() == {
        Spent.EXPERTS: [3.0, 0.0, 1.0],
        Spent.EXPOSED: [0.0, 0.0, 0.25],
        Spent.HIDDEN: [0.0, 0.0, 0.0],
    }


def test_a_span_counts_no_more_than_it_may():
    clock = LayerClock(1, CPU)
    clock.add(Spent.HIDDEN, 0, 0.0, 10.0, at_most_s=0.5)
    clock.add(Spent.HIDDEN, 0, 0.0, 0.25, at_most_s=0.5)
    assert clock.take()[Spent.HIDDEN] == [0.75]


def test_take_starts_again_from_zero_and_gives_away_what_it_took():
    clock = LayerClock(1, CPU)
    clock.add(Spent.EXPERTS, 0, 0.0, 1.0)
    taken = clock.take()
    clock.add(Spent.EXPERTS, 0, 0.0, 2.0)
    assert taken[Spent.EXPERTS] == [1.0]
    assert clock.take()[Spent.EXPERTS] == [2.0]


def test_a_span_that_raises_is_still_charged():
    clock = LayerClock(2, CPU)
    before = clock.mark()
    with pytest.raises(KeyError), clock.span(Spent.EXPERTS, 1):
        raise KeyError
    whole_s = clock.mark() - before
    assert 0 < clock.take()[Spent.EXPERTS][1] <= whole_s


@pytest.mark.gpu
@pytest.mark.parametrize("device", [pytest.param("cuda", marks=gpus(1))])
def test_on_a_gpu_spans_are_the_stream_s_and_nothing_waits(device):
    clock = LayerClock(2, torch.device(device))
    x_DD = torch.randn(4096, 4096, device=device)
    for _ in range(3):
        x_DD @ x_DD  # warm
    with no_host_wait():
        with clock.span(Spent.EXPERTS, 1):
            for _ in range(50):
                x_DD @ x_DD
        early = clock.take()  # the host is ahead of the device
    torch.cuda.synchronize()
    late = clock.take()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(50):
        x_DD @ x_DD
    end.record()
    torch.cuda.synchronize()
    seconds = start.elapsed_time(end) / 1e3
    assert early[Spent.EXPERTS] == [0.0, 0.0] and late[Spent.EXPERTS][0] == 0.0
    assert 0.5 * seconds < late[Spent.EXPERTS][1] < 2 * seconds
    assert clock.take()[Spent.EXPERTS] == [0.0, 0.0]
