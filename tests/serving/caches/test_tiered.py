"""What leaves the device goes to the host's memory, and comes back with the same contents."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from serving.caches.prefix import TieredPrefix
from serving.caches.prefix.protocol import scope_of
from serving.memory.blocks import BlockPool
from serving.memory.tiers import Tier

FIRST = 3

Contents = tuple[int, tuple[int, ...]]


class Machine:
    """A device and a host with real contents, over which steps run as an engine's do: copies out,
    then what is computed, then copies back."""

    def __init__(self, device: int, host: int) -> None:
        self.pool = BlockPool(device, 2)
        self.below = BlockPool(host, 2, Tier.HOST)
        self.cache = TieredPrefix(self.pool, self.below, first=FIRST)
        self.device: dict[int, Contents] = {}
        self.host: dict[int, Contents] = {}
        self.lowered = self.raised = 0

    def scope(self, tenant: int) -> bytes:
        return scope_of("m", "", str(tenant))

    def run(self, written: dict[int, Contents]) -> None:
        out, back = self.cache.moved()
        assert len({copy.target for copy in out}) == len(out)
        self.host.update({copy.target: self.device[copy.source] for copy in out})
        self.device.update(written)
        for copy in back:
            self.device[copy.target] = self.host[copy.source]
        self.lowered += len(out)
        self.raised += len(back)

    def ask(self, tenant: int, prompt: list[int], evict: int = 0) -> int:
        """A whole request; how many of its blocks were there already."""
        full = len(prompt) // 2
        matched = self.cache.match(self.scope(tenant), prompt)
        self.cache.evict(max(evict, full - len(matched) - self.pool.free))
        if self.pool.free < full - len(matched):
            self.run({})
            self.pool.release(matched)
            return 0
        own = self.pool.allocate(full - len(matched))
        block_ids = [*matched, *own]
        contents = {b: (tenant, tuple(prompt[: 2 * p + 2])) for p, b in enumerate(block_ids)}
        self.run({block_id: contents[block_id] for block_id in own})
        for block_id, expected in contents.items():
            assert self.device[block_id] == expected
        self.cache.insert(self.scope(tenant), prompt, block_ids)
        self.pool.release(block_ids)
        return len(matched)


def test_what_was_evicted_comes_back_from_the_host() -> None:
    machine = Machine(device=4, host=8)
    assert machine.ask(0, [1, 2, 3, 4, 5, 6]) == 0
    assert machine.ask(0, [7, 8, 9, 10, 11, 12]) == 0  # pushes out two of the first's blocks
    assert (machine.lowered, machine.raised) == (2, 0)
    assert machine.ask(0, [1, 2, 3, 4, 5, 6]) == 3
    assert machine.raised == 2
    assert machine.ask(1, [1, 2, 3, 4]) == 0  # another tenant's is nobody's


def test_a_host_that_is_full_loses_what_was_used_the_longest_ago() -> None:
    machine = Machine(device=2, host=4)
    for first in (10, 20, 30, 40):
        assert machine.ask(0, [first, 0, first + 1, 0]) == 0
    assert machine.ask(0, [10, 0, 11, 0]) == 0  # takes the place of 20
    assert machine.ask(0, [20, 0, 21, 0]) == 0
    assert machine.ask(0, [40, 0, 41, 0]) >= 1


def test_what_is_touched_stays_longer() -> None:
    machine = Machine(device=4, host=1)
    machine.ask(0, [1, 1, 2, 2])
    machine.ask(0, [3, 3, 4, 4])
    machine.cache.touch(machine.scope(0), [1, 1, 2, 2])
    assert machine.cache.evict(2) == 2
    machine.run({})
    assert machine.ask(0, [1, 1, 2, 2]) == 2 and machine.raised == 0
    assert machine.ask(0, [3, 3, 4, 4]) == 1 and machine.raised == 1


def test_without_room_in_the_host_it_is_the_plain_tree() -> None:
    machine = Machine(device=2, host=1)
    blocked = machine.below.allocate(1)
    machine.ask(0, [1, 1, 2, 2])
    assert machine.cache.evict(2) == 2 and len(machine.cache) == 0
    assert machine.ask(0, [1, 1, 2, 2]) == 0 and machine.lowered == 0
    machine.below.release(blocked)


requests = st.tuples(
    st.integers(0, 1), st.lists(st.integers(0, 1), min_size=0, max_size=14), st.integers(0, 4)
)


@settings(max_examples=150, deadline=None)
@given(st.lists(requests, max_size=40), st.integers(3, 9), st.integers(1, 9))
def test_every_block_that_matches_holds_its_tokens(
    asked: list[tuple[int, list[int], int]], device: int, host: int
) -> None:
    machine = Machine(device, host)
    for tenant, prompt, evict in asked:
        machine.ask(tenant, prompt, evict)
        assert machine.pool.used == len(machine.cache)
    machine.cache.evict(machine.pool.total)
    machine.run({})
    assert machine.pool.free == machine.pool.total
