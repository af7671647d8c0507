from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from serving.caches.prefix import NoPrefix, RadixPrefix
from serving.caches.prefix.protocol import scope_of
from serving.memory.blocks import BlockPool

SCOPE = scope_of("model", "", "tenant")


def _publish(cache: RadixPrefix, pool: BlockPool, tokens: list[int], scope: bytes = SCOPE) -> int:
    block_ids = pool.allocate(len(tokens) // pool.block_tokens)
    new = cache.insert(scope, tokens, block_ids)
    pool.release(block_ids)
    return new


def test_scopes_differ_in_each_part_and_in_where_it_ends() -> None:
    triples = [("m", "", ""), ("", "m", ""), ("", "", "m"), ("mm", "", ""), ("m", "m", "")]
    assert len({scope_of(*triple) for triple in triples}) == len(triples)


def test_only_whole_blocks_of_an_equal_beginning_match() -> None:
    pool = BlockPool(8, 2)
    cache = RadixPrefix(pool)
    assert _publish(cache, pool, [1, 2, 3, 4, 5]) == 2
    assert _publish(cache, pool, [1, 2, 3, 4]) == 0 and pool.used == 2
    assert _publish(cache, pool, [1, 2, 9, 9]) == 1
    assert len(cache.match(SCOPE, [1, 2, 3, 4, 5, 6])) == 2
    assert len(cache.match(SCOPE, [1, 2, 3])) == 1
    assert cache.match(SCOPE, [2, 1]) == []
    assert cache.match(scope_of("model", "", "another"), [1, 2, 3, 4]) == []
    assert NoPrefix(pool).match(SCOPE, [1, 2]) == []


def test_the_longest_unused_leaf_goes_first_and_what_is_held_stays() -> None:
    pool = BlockPool(8, 1)
    cache = RadixPrefix(pool)
    _publish(cache, pool, [1, 2])
    _publish(cache, pool, [1, 3])
    held = cache.match(SCOPE, [1, 2])
    assert cache.evict(5) == 1  # [3]; the other leaf is held, and so is what comes before it
    assert len(cache) == 2
    pool.release(held)
    _publish(cache, pool, [4])
    pool.release(cache.match(SCOPE, [1, 2]))
    assert cache.evict(1) == 1  # 4 was inserted before [1, 2] was used again
    assert cache.match(SCOPE, [4]) == []
    assert cache.evict(5) == 2 and pool.free == pool.total


tokens = st.lists(st.integers(0, 1), min_size=0, max_size=12)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("imer"), st.integers(0, 1), tokens), max_size=40))
def test_what_matches_is_what_was_inserted(steps: list[tuple[str, int, list[int]]]) -> None:
    """Against a plain dictionary from a beginning to its block, whatever the order of calls."""
    pool = BlockPool(24, 2)
    cache = RadixPrefix(pool)
    written: dict[int, tuple[int, tuple[int, ...]]] = {}  # what a block holds, from the beginning
    matches: list[list[int]] = []
    for action, tenant, prompt in steps:
        scope = scope_of("m", "", str(tenant))
        full = len(prompt) // 2
        if action == "i":
            if pool.free < full:
                continue
            block_ids = pool.allocate(full)
            for place, block_id in enumerate(block_ids):
                written[block_id] = (tenant, tuple(prompt[: 2 * place + 2]))
            cache.insert(scope, prompt, block_ids)
            pool.release(block_ids)
        elif action == "m":
            matched = cache.match(scope, prompt)
            for place, block_id in enumerate(matched):
                assert written[block_id] == (tenant, tuple(prompt[: 2 * place + 2]))
            matches.append(matched)
        elif action == "e":
            free = pool.free
            assert cache.evict(full) == pool.free - free <= full
        elif matches:
            pool.release(matches.pop())
        held = {block_id for matched in matches for block_id in matched}
        assert pool.used == len(cache) >= len(held)
    for matched in matches:
        pool.release(matched)
    size = len(cache)
    assert cache.evict(pool.total) == size
    assert pool.free == pool.total
