"""Ray Serve's router class with ours in it: what goes to a replica is counted, and once."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray")
from ray.serve._private.common import (  # noqa: E402
    DeploymentHandleSource,
    DeploymentID,
    ReplicaID,
    RequestMetadata,
)
from ray.serve.request_router import PendingRequest  # noqa: E402

from serving.app.messages import Ticket  # noqa: E402
from serving.app.router import PlacementRouter  # noqa: E402

DEPLOYMENT = DeploymentID(name="engine")


@dataclass
class Replica:
    """As much as the router sees of one."""

    replica_id: ReplicaID
    routing_stats: dict[str, int] = field(default_factory=dict)


def replica(name: str) -> Replica:
    return Replica(ReplicaID(name, DEPLOYMENT))


def router_over(*replicas: Replica) -> PlacementRouter:
    router = PlacementRouter(DEPLOYMENT, DeploymentHandleSource.REPLICA)
    router.initialize_state(policy="least_tokens", steps={}, slo_s=1.0, stale_s=5.0)
    router._replicas = {each.replica_id: each for each in replicas}
    router._replicas_list = list(replicas)
    return router


def pending(ticket: Ticket) -> PendingRequest:
    metadata = RequestMetadata(request_id="r", internal_request_id="i")
    return PendingRequest(args=[ticket], kwargs={}, metadata=metadata)


async def picked(router: PlacementRouter, ticket: Ticket) -> str:
    """As ``choose_replica`` of a handle does without a reservation: the first that is offered."""
    async with aclosing(router._choose_replicas_with_backoff(pending(ticket))) as offered:
        return str((await anext(offered))[0].replica_id.unique_id)


async def routed(router: PlacementRouter, ticket: Ticket, rejects: int) -> str:
    """As a call goes: what is offered is asked, until one of them takes it."""
    request = pending(ticket)
    async with aclosing(router._choose_replicas_with_backoff(request)) as offered:
        async for candidates in offered:
            if rejects == 0:
                chosen: Any = candidates[0].replica_id
                router.on_request_routed(request, chosen, SimpleNamespace())
                return str(chosen.unique_id)
            rejects -= 1
    raise AssertionError("nobody took it")


def test_what_is_picked_is_counted_once() -> None:
    async def test() -> None:
        router = router_over(replica("a"), replica("b"))
        tokens = router._placement.tokens
        ticket = Ticket(tokens=100, picks=True)
        assert await picked(router, ticket) == "a"
        assert (tokens("a"), tokens("b")) == (100, 0)
        assert await picked(router, ticket) == "b"
        assert (tokens("a"), tokens("b")) == (100, 100)
        # Where no connection can be made the request is sent after all, to where it was counted.
        assert await routed(router, Ticket(replica="b"), rejects=0) == "b"
        assert (tokens("a"), tokens("b")) == (100, 100)

    asyncio.run(test())


def test_what_is_routed_is_counted_where_it_was_taken() -> None:
    async def test() -> None:
        router = router_over(replica("a"), replica("b"))
        assert await routed(router, Ticket(tokens=100), rejects=3) == "b"
        assert (router._placement.tokens("a"), router._placement.tokens("b")) == (0, 100)

    asyncio.run(test())


def test_who_does_not_answer_is_not_asked_again_before_the_others() -> None:
    async def test() -> None:
        router = router_over(replica("a"), replica("b"))
        asked = [await picked(router, Ticket(probe=True)) for _ in range(4)]  # none is routed
        assert asked == ["a", "b", "a", "b"]
        assert await routed(router, Ticket(probe=True), rejects=0) == "a"
        assert await picked(router, Ticket(probe=True)) == "b"

    asyncio.run(test())


def test_a_pick_that_no_replica_will_do_for_waits_and_counts_nothing() -> None:
    async def test() -> None:
        first, second = replica("a"), replica("b")
        router = router_over(first)
        ticket = Ticket(tokens=100, picks=True, avoid=frozenset({"a"}))
        picking = asyncio.ensure_future(picked(router, ticket))
        await asyncio.wait([picking], timeout=0.05)
        assert not picking.done() and router._placement.tokens("a") == 0
        router._replicas[second.replica_id] = second
        router._replicas_list = [first, second]
        assert await picking == "b"
        assert (router._placement.tokens("a"), router._placement.tokens("b")) == (0, 100)

    asyncio.run(test())
