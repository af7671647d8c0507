"""Shares of late adapters, computed by processes beside."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from serving.lora.adapters import Adapter, LowRank
from serving.lora.arrival import Arrival
from serving.lora.assist import HostAssistants
from serving.lora.targets import Target

Q = Target("layers.0.q", "", 32, 48, layer=0)
K = Target("layers.0.k", "", 32, 16, layer=0)
V = Target("layers.0.v", "", 32, 16, layer=0)


def adapter(digest: str, *targets: Target) -> Adapter:
    generator = torch.Generator().manual_seed(len(digest))
    changes = {
        target.name: LowRank(
            torch.randn(1, 8, target.inputs, generator=generator).bfloat16(),
            torch.randn(1, 8, target.outputs, generator=generator).bfloat16(),
        )
        for target in targets
    }
    return Adapter(digest, changes)


def product(of: Adapter, target: Target, x_RI: torch.Tensor) -> torch.Tensor:
    change = of.changes[target.name]
    return x_RI.float() @ change.a_ErI[0].float().t() @ change.b_ErO[0].float()


@pytest.fixture(scope="module")
def host() -> Iterator[HostAssistants]:
    host = HostAssistants(
        2, rows=64, width=80, dtype=torch.bfloat16, rows_each=8, cores=frozenset()
    )
    yield host
    host.close()


def test_shares_that_read_the_same_are_begun_together(host: HostAssistants) -> None:
    """Few rows by one process, many by both; another adapter's meanwhile, which leaves K as it is;
    nothing of them is mixed up."""
    one, other = adapter("one", Q, K, V), adapter("other", Q, V)
    host.hold(one)
    host.hold(other)
    for R in (1, 3, 29):
        x_RI, y_RI = torch.randn(2, R, 32).bfloat16()
        first = host.begin("one", [Q, K, V], x_RI)
        second = host.begin("other", [Q, K, V], y_RI)
        assert first is not None and second is not None
        shares, others = first(), second()
        assert shares is not None and others is not None
        for target in (Q, K, V):
            torch.testing.assert_close(shares[target.name], product(one, target, x_RI))
        torch.testing.assert_close(others[Q.name], product(other, Q, y_RI))
        torch.testing.assert_close(others[V.name], product(other, V, y_RI))
        assert not others[K.name].any()


def test_what_it_has_no_room_for_or_does_not_know_is_left(host: HostAssistants) -> None:
    host.hold(adapter("one", Q, K, V))
    assert host.begin("one", [Q], torch.zeros(161, 32).bfloat16()) is None
    assert host.begin("nobody's", [Q], torch.zeros(1, 32).bfloat16()) is None
    assert host.holds("one") and not host.holds("nobody's")


def test_a_layer_that_came_meanwhile_is_no_longer_asked_for(host: HostAssistants) -> None:
    """What was begun is still taken; then the slot counts."""
    one = adapter("one", Q, K, V)
    host.hold(one)
    arrival = Arrival("one", 1, host)
    x_RI = torch.randn(5, 32).bfloat16()
    arrival.begin([Q, K], x_RI)
    arrival.landed(1)
    slot = torch.ones(5, 48)
    torch.testing.assert_close(arrival.share(Q, x_RI, lambda: slot), product(one, Q, x_RI))
    torch.testing.assert_close(arrival.share(K, x_RI, lambda: slot), product(one, K, x_RI))
    assert arrival.assisted == 2 and arrival.waited == 0
    arrival.begin([Q], x_RI)
    assert arrival.share(Q, x_RI, lambda: slot) is slot
    assert arrival.assisted == 2 and arrival.assisted_s > 0


def test_without_the_host_a_guest_is_computed_here(host: HostAssistants) -> None:
    one = adapter("one", Q, V)
    x_RI = torch.randn(5, 32).bfloat16()
    arrival = Arrival("unknown", 1, host, one)
    arrival.begin([Q, K], x_RI)
    slot = torch.full((5, 16), 9.0)
    torch.testing.assert_close(
        arrival.share(Q, x_RI, lambda: slot).float(), product(one, Q, x_RI), rtol=0.05, atol=0.2
    )
    assert not arrival.share(K, x_RI, lambda: slot).any()
    assert not arrival.whole and arrival.assisted == arrival.waited == 0
