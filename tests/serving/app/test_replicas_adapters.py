"""Adapters are on all replicas or on none, those that do not answer for a while included."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

pytest.importorskip("ray")
from ray.exceptions import RayError  # noqa: E402

from serving.app.adapters import ReplicasAdapters  # noqa: E402
from serving.app.messages import (  # noqa: E402
    AdapterChange,
    AdapterId,
    Refusal,
    Report,
    Ticket,
)
from serving.errors import ModelNotFound  # noqa: E402


@dataclass
class Fleet:
    """What Ray Serve's handle is to it: replicas by name, some of which do not answer."""

    has: dict[str, dict[str, str]]
    silent: set[str] = field(default_factory=set)
    clock_s: float = 0.0
    gone: list[str] = field(default_factory=list)
    before_load: Callable[[str], Awaitable[None]] | None = None

    def __post_init__(self) -> None:
        self.adapters = ReplicasAdapters(
            self, lambda: list(self.has), 5, lambda: self.clock_s, self.gone.append
        )

    def __getattr__(self, method: str) -> Any:
        return _Remote(self, method)

    async def call(self, method: str, ticket: Ticket, name: str, folder: str) -> AdapterChange:
        replica = ticket.replica if ticket.replica in self.has else next(iter(self.has))
        if replica in self.silent:
            raise RayError
        if method == "load_adapter":
            if self.before_load is not None:
                await self.before_load(replica)
            self.has[replica][name] = folder
        elif self.has[replica].pop(name, None) is None:
            return AdapterChange(replica, refusal=Refusal.of(ModelNotFound("no", param="x")))
        return AdapterChange(replica, AdapterId(folder, 8))

    async def report(self, replica: str, asked_s: float | None = None) -> None:
        facts: Any = None
        adapters = {name: AdapterId(folder, 8) for name, folder in self.has[replica].items()}
        report = Report(replica, facts, facts, adapters)
        await self.adapters.hear(report, self.clock_s if asked_s is None else asked_s)


@dataclass
class _Remote:
    fleet: Fleet
    method: str

    async def remote(self, ticket: Ticket, name: str, folder: str = "") -> AdapterChange:
        return await self.fleet.call(self.method, ticket, name, folder)


def test_who_did_not_answer_catches_up_with_loads_and_unloads() -> None:
    async def use() -> None:
        fleet = Fleet({"a": {}, "b": {}})
        fleet.silent = {"b"}
        await fleet.adapters.load("x", "/x")
        assert fleet.has == {"a": {"x": "/x"}, "b": {}}
        fleet.silent = set()
        fleet.clock_s = 1
        await fleet.report("b")
        assert fleet.has == {"a": {"x": "/x"}, "b": {"x": "/x"}}

        fleet.silent = {"b"}
        fleet.clock_s = 2
        await fleet.adapters.unload("x")
        assert fleet.has == {"a": {}, "b": {"x": "/x"}}
        assert fleet.adapters.left("x") and not fleet.adapters.names()
        fleet.silent = set()
        await fleet.report("b", asked_s=1.5)  # an answer from before: it says nothing of now
        assert not fleet.adapters.names()
        fleet.clock_s = 3
        await fleet.report("b")
        assert fleet.has == {"a": {}, "b": {}}
        assert not fleet.adapters.left("x")
        with pytest.raises(ModelNotFound):
            await fleet.adapters.unload("x")

    asyncio.run(use())


def test_a_load_under_way_does_not_bring_back_what_was_unloaded() -> None:
    async def use() -> None:
        fleet = Fleet({"a": {}, "b": {}})
        fleet.silent = {"b"}
        await fleet.adapters.load("x", "/x")
        fleet.silent = set()

        async def unload_first(replica: str) -> None:
            fleet.before_load = None
            await fleet.adapters.unload("x")

        fleet.before_load = unload_first
        fleet.clock_s = 1
        await fleet.report("b")  # it lacks the adapter, and is told to load it
        assert fleet.has == {"a": {}, "b": {}}
        assert not fleet.adapters.left("x")

    asyncio.run(use())


def test_a_watched_folder_may_bring_back_a_name_that_a_lost_replica_had() -> None:
    async def use() -> None:
        fleet = Fleet({"a": {}, "b": {}})
        await fleet.adapters.load("x", "/x")
        fleet.silent = {"b"}
        fleet.clock_s = 1
        await fleet.adapters.unload("x")
        fleet.has["a"]["x"] = "/watched/x"
        fleet.clock_s = 2
        await fleet.report("a")
        assert not fleet.adapters.left("x") and fleet.adapters.names() == ["x"]

    asyncio.run(use())


def test_a_replica_that_is_no_more_holds_up_no_adapter() -> None:
    async def use() -> None:
        fleet = Fleet({"a": {}, "b": {}})
        await fleet.adapters.load("x", "/x")
        fleet.silent = {"b"}
        await fleet.adapters.unload("x")
        assert fleet.adapters.left("x")
        await fleet.adapters.load("x", "/y")
        del fleet.has["b"]  # calls that are meant for it come to the other now
        fleet.silent = set()
        assert not await fleet.adapters.have("x", "b")
        assert fleet.gone == ["b"]
        await fleet.adapters.unload("x")
        assert fleet.has == {"a": {}} and not fleet.adapters.left("x")

    asyncio.run(use())
