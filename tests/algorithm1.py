"""Algorithm 1 word by word: one slot, one copy and one comparison at a time, in exact fractions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

Triple = tuple[int, int, int]


def whole(loads: Sequence[float]) -> list[int]:
    """Loads in units of a power of two, of which all together make less than 2^30."""
    _, exponent = math.frexp(max(loads) * len(loads))
    return [math.floor(math.ldexp(load, 30 - exponent)) for load in loads]


def slots_by_load(units: dict[int, int], slots: int, most: int) -> dict[int, int]:
    copies = dict.fromkeys(units, 0)
    for _ in range(slots):
        open_to = [e for e in units if copies[e] < most and units[e] > 0]
        if not open_to:
            break
        best = min(open_to, key=lambda e: (-Fraction(units[e], copies[e] + 1), e))
        copies[best] += 1
    return copies


def one_layer(
    loads: Sequence[float],
    owners: Sequence[int],
    node_of_rank: Sequence[int],
    t: int,
    m: int,
    receive: int,
    send: int,
    least_imbalance: float,
) -> list[tuple[int, int]]:
    """(expert, rank) of each copy, sorted."""
    world_size, num_experts = len(node_of_rank), len(loads)
    t = min(t, num_experts)
    m = min(m, t, receive)
    units = whole(loads)
    rank_units = [
        sum(u for u, o in zip(units, owners, strict=True) if o == r) for r in range(world_size)
    ]
    if m < 1 or max(rank_units) * world_size <= least_imbalance * sum(units):
        return []
    hot = sorted(range(num_experts), key=lambda e: (-units[e], e))[:t]
    if t <= m:
        number = {e: world_size - 1 if units[e] else 0 for e in hot}
    else:
        number = slots_by_load({e: units[e] for e in sorted(hot)}, world_size * m, world_size - 1)
    single = len(set(node_of_rank)) == 1
    node = list(range(world_size)) if single else list(node_of_rank)
    nodes = sorted(set(node))
    free = [m] * world_size
    share = {e: units[e] // (number.get(e, 0) + 1) // 2**12 for e in range(num_experts)}
    planned = {n: sum(share[e] for e in range(num_experts) if node[owners[e]] == n) for n in nodes}
    sends_left = dict.fromkeys(nodes, send)
    held = {e: {owners[e]} for e in range(num_experts)}
    for e in hot:
        home = node[owners[e]]
        for _ in range(number[e]):
            open_to = []
            for n in nodes:
                copies = sum(node[r] == n for r in held[e])
                room = [
                    r for r in range(world_size) if node[r] == n and free[r] and r not in held[e]
                ]
                if room and (copies or single or sends_left[home]):
                    slots = sum(free[r] for r in range(world_size) if node[r] == n)
                    open_to.append((copies, -slots, planned[n], n, room))
            if not open_to:
                break
            copies, _, _, n, room = min(open_to)
            rank = min(room, key=lambda r: (-free[r], r))
            if not copies:
                sends_left[home] -= 1
            held[e].add(rank)
            free[rank] -= 1
            planned[n] += share[e]
    return sorted((e, r) for e in held for r in held[e] if r != owners[e])


def algorithm_1(loads_YE, owners_YE, node_of_rank, t, m, receive, send, least) -> list[Triple]:  # type: ignore[no-untyped-def]
    return [
        (layer, expert, rank)
        for layer, (loads, owners) in enumerate(
            zip(loads_YE.tolist(), owners_YE.tolist(), strict=True)
        )
        for expert, rank in one_layer(loads, owners, node_of_rank, t, m, receive, send, least)
    ]
