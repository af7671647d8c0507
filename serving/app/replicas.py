"""The ``Backend`` of an ingress: all engine replicas behind Ray Serve's router.

A request that its replica loses before its first token is tried elsewhere; one that is lost later
ends with an error. One connection to each replica carries all its requests and their deltas; where
there can be none, calls of Ray Serve's and one stream do.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import logging
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from serving.app.adapters import ReplicasAdapters
from serving.app.calls import CALL_LATE, CALL_LOST
from serving.app.config import IngressConfig
from serving.app.links import Link, Links
from serving.app.messages import Admission, Refusal, Report, Step, Ticket, in_brief
from serving.engine.protocol import EngineFacts, EngineLoad
from serving.errors import EngineDead, ModelNotFound, Overloaded, ServingError
from serving.lora.placement import Wanted
from serving.request import Delta, Request

LOG = logging.getLogger("serving.app")

T = TypeVar("T")

Item = Delta | EngineDead
FORGET_AFTER = 4  # times the silence that makes a replica count as dead
CATCH_UPS = 4  # of one request, for which an adapter may change as often


@dataclass
class _Stream:
    request: Request
    asked: str = ""  # the replica that is to admit it
    replica: str = ""
    linked: bool = False  # whether it went there on a connection of ours
    avoid: frozenset[str] = frozenset()
    full: frozenset[str] = frozenset()
    queue: asyncio.Queue[Item] = field(default_factory=asyncio.Queue)


class Replicas:
    """``handle``: Serve's, of the engine deployment. ``start`` waits for the first replica."""

    def __init__(self, handle: Any, config: IngressConfig) -> None:
        self._handle = handle
        self._config = config
        self._ingress = uuid.uuid4().hex
        self._numbers = itertools.count(1)
        self._streams: dict[str, _Stream] = {}
        self._listening: dict[str, asyncio.Task[None]] = {}
        self._loose_ends: set[asyncio.Task[None]] = set()
        self._loads: dict[str, tuple[float, EngineLoad]] = {}
        self._report: Report | None = None
        self._heard_s = 0.0
        self._dead: EngineDead | None = None
        self._adapters = ReplicasAdapters(
            handle, lambda: list(self._loads), config.admit_s, _now_s, self._gone
        )
        self._links = Links(
            handle, self._hear_step, self._lose_link, _apart, _now_s, config.admit_s
        )

    @property
    def facts(self) -> EngineFacts:
        assert self._report is not None, "start() comes first"
        return self._report.facts

    async def start(self) -> None:
        asked_s = _now_s()
        self._report = await self._handle.report.remote(Ticket(probe=True))
        self._hear(self._report)
        await self._adapters.hear(self._report, asked_s)
        await self._link(self._report.replica)
        self._watching = _apart(self._watch())

    async def open(self, request: Request) -> AsyncIterator[Delta]:
        stream = _Stream(request)
        self._streams[request.request_id] = stream
        try:
            await self._submit(stream)
        except BaseException:
            self._streams.pop(request.request_id, None)
            raise
        return self._deltas(stream)

    async def close(self, request_id: str) -> None:
        stream = self._streams.pop(request_id, None)
        if stream is not None and stream.replica:
            self._beside(self._cancel(stream.replica, request_id))

    async def prioritise(self, priorities: Mapping[str, int]) -> None:
        of_replicas: dict[str, dict[str, int]] = {}
        for request_id, priority in priorities.items():
            stream = self._streams.get(request_id)
            if stream is not None:
                stream.request = replace(stream.request, priority=priority)  # should it move on
                of_replicas.setdefault(stream.replica, {})[request_id] = priority
        for replica, of in of_replicas.items():
            if replica and (link := self._links.made(replica)) is not None:
                link.prioritise(of)
            elif replica:
                self._beside(self._call(replica, "prioritise", of))

    async def embed(self, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
        tokens = sum(len(prompt) for prompt in prompts)
        try:
            found = await self._handle.embed.remote(Ticket(tokens=tokens), prompts)
        except CALL_LOST as error:
            raise _lost(error) from error
        if found.refusal is not None:
            raise found.refusal.error()
        return [list(vector) for vector in found.vectors]

    def adapters(self) -> Sequence[str]:
        return self._adapters.names()

    async def load_adapter(self, name: str, folder: str) -> None:
        await self._adapters.load(name, folder)

    async def unload_adapter(self, name: str) -> None:
        await self._adapters.unload(name)

    def loads(self) -> Sequence[tuple[str, EngineLoad]]:
        oldest_s = _now_s() - self._config.silence_s
        return [(name, load) for name, (at_s, load) in self._loads.items() if at_s >= oldest_s]

    def check(self) -> None:
        """Raise ``EngineDead`` where no replica is known to live."""
        if not self.loads():
            silent_s = _now_s() - self._heard_s
            raise self._dead or EngineDead(
                "no replica answers", got=f"silence for {silent_s:.0f} s"
            )

    async def _submit(self, stream: _Stream) -> None:
        """Have some replica admit it; another, where one is full, dead or dies of it."""
        request = stream.request
        if self._adapters.left(request.adapter):
            raise ModelNotFound(
                f"there is no adapter {request.adapter} here any more",
                fix="GET /v1/models lists what is served",
                param="model",
            )
        tokens = len(request.prompt) + request.n * request.sampling.max_tokens
        wanted = self._wanted(request)
        failure: ServingError | None = None
        lacking = ""
        left, catch_ups = self._config.tries, CATCH_UPS
        while left:
            left -= 1
            ticket = Ticket(
                replica=lacking,
                avoid=stream.avoid,
                full=stream.full | self._crowded(),
                tokens=tokens,
                wanted=wanted,
                sender=self._ingress,
                number=next(self._numbers),
            )
            lacking = stream.asked = ""
            digest = self._adapters.digest(request.adapter)
            asked = replace(request, adapter_digest=digest)
            admitting = _apart(self._admit(ticket, asked, stream))
            try:
                # Not ``wait_for``, which loses a cancellation that comes with the result (3.11).
                async with asyncio.timeout(self._config.admit_s):
                    admission, link = await asyncio.shield(admitting)
            except CALL_LOST as error:
                failure = _lost(error)
                continue
            except TimeoutError as error:
                self._beside(self._withdraw(admitting, request.request_id))
                failure = failure or EngineDead("no replica takes requests now")
                if not stream.asked:
                    raise failure from error
                stream.avoid |= {stream.asked}  # which hangs
                continue
            except asyncio.CancelledError:  # its client is gone
                self._beside(self._withdraw(admitting, request.request_id))
                raise
            if admission.refusal is None:
                stream.replica, stream.linked = admission.replica, link is not None
                if link is None:
                    self._listen(admission.replica)
                if link is None or link.lives:
                    return
                admission = _lost_with(admission.replica)  # since it admitted
            assert admission.refusal is not None
            failure = admission.refusal.error()
            if isinstance(failure, EngineDead):
                stream.avoid |= {admission.replica}
            elif isinstance(failure, Overloaded) and admission.replica not in stream.full:
                stream.full |= {admission.replica}
            elif isinstance(failure, ModelNotFound) and self._adapters.knows(request.adapter):
                lacks, replica = failure, admission.replica
                failure = EngineDead(
                    "no replica has the adapter now",
                    got=request.adapter,
                    fix="send the request again",
                )
                if catch_ups and await self._adapters.have(request.adapter, replica):
                    # It has it now, unless a change waited for its turn; that was no try.
                    lacking = replica
                    catch_ups -= 1
                    left += 1
                elif not self._adapters.knows(request.adapter):  # unloaded meanwhile
                    raise lacks
                else:
                    stream.avoid |= {replica}
                    if not self._loads.keys() - stream.avoid:
                        raise failure
            else:
                raise failure
        raise failure or EngineDead("no replica takes requests now")

    def _wanted(self, request: Request) -> Wanted:
        """An answer may end before it has all its tokens: who places it knows how long they are."""
        found = self._adapters.find(request.adapter)
        return Wanted(
            in_brief(found.digest) if found else "",
            found.rank if found else 0,
            len(request.prompt),
            max(1, request.sampling.max_tokens),
            request.n,
        )

    def _crowded(self) -> frozenset[str]:
        """Replicas that have as many answers of ours under way as they have places."""
        if self._report is None:
            return frozenset()
        held: Counter[str] = Counter()
        for stream in self._streams.values():
            held[stream.replica] += stream.request.n
        most = self.facts.max_sequences
        return frozenset(name for name, count in held.items() if name and count >= most)

    async def _admit(
        self, ticket: Ticket, request: Request, stream: _Stream
    ) -> tuple[Admission, Link | None]:
        """Have Serve's router say where, and go there: on our connection, which comes too, or as
        a call of Serve's."""
        picking = self._handle.choose_replica(replace(ticket, picks=True), _reserve=False)
        async with picking as picked:
            replica: str = picked.replica_id
        stream.asked = replica
        try:
            link = await self._links.to(replica)
            if link is not None:
                return await link.submit(request, ticket), link
        except OSError:
            return _lost_with(replica), None
        ticket = replace(ticket, replica=replica, tokens=0)  # which are counted
        return await self._handle.submit.remote(ticket, self._ingress, request), None

    async def _deltas(self, stream: _Stream) -> AsyncIterator[Delta]:
        left = stream.request.n
        begun = False
        tries = self._config.tries
        while left:
            item = await stream.queue.get()
            if isinstance(item, EngineDead):
                tries -= 1
                if begun or not tries:
                    raise item
                LOG.warning("%s lost its replica, trying another", stream.request.request_id)
                await self._submit(stream)
                continue
            begun = begun or bool(item.tokens)
            if item.finish is not None:
                left -= 1
                if not left:
                    self._streams.pop(stream.request.request_id, None)
            yield item

    def _listen(self, replica: str) -> None:
        if replica not in self._listening:
            self._listening[replica] = _apart(self._hear_of(replica))

    async def _hear_of(self, replica: str) -> None:
        """Hand out what ``replica`` makes for as long as it has requests of ours."""
        dead: EngineDead | None = None
        try:
            while dead is None and self._of(replica, linked=False):
                dead = await self._hear_once(replica)
        except CALL_LOST as error:
            dead = _lost(error)
        except Exception as error:  # whatever it is, nobody may wait for it in vain
            LOG.exception("listening to replica %s failed", replica)
            dead = EngineDead("the connection to a replica failed", got=str(error))
        finally:
            del self._listening[replica]
        if dead is not None:
            self._end(replica, dead, linked=False)

    async def _hear_once(self, replica: str) -> EngineDead | None:
        listen = self._handle.options(stream=True).listen
        steps = listen.remote(Ticket(replica=replica), self._ingress).__aiter__()
        try:
            async with asyncio.timeout(self._config.admit_s):
                step: Step = await anext(steps)
        except TimeoutError:
            steps.cancel()
            return EngineDead("a replica went away", fix="send the request again")
        while True:
            if (dead := self._take(replica, step)) is not None:
                return dead
            try:
                step = await anext(steps)
            except StopAsyncIteration:
                return None

    def _hear_step(self, replica: str, step: Step) -> None:
        """What came on our own connection."""
        if (dead := self._take(replica, step)) is not None:
            self._end(replica, dead, linked=True)

    def _take(self, replica: str, step: Step) -> EngineDead | None:
        """Hand out its deltas; what ends them, where something does."""
        for delta in step.deltas:
            stream = self._streams.get(delta.request_id)
            # What a replica still makes of a request that went elsewhere is nobody's.
            if stream is not None and replica not in stream.avoid:
                stream.queue.put_nowait(delta)
        if step.dead is not None:
            error = step.dead.error()
            assert isinstance(error, EngineDead)
            return error
        self._loads[replica] = (_now_s(), step.load)
        return None

    async def _link(self, replica: str) -> None:
        with suppress(OSError):  # who sends a request there is told
            await self._links.to(replica)

    def _lose_link(self, replica: str, error: OSError) -> None:
        self._end(
            replica,
            EngineDead(
                "the connection to a replica was lost",
                got=str(error),
                fix="send the request again",
            ),
            linked=True,
        )

    def _end(self, replica: str, dead: EngineDead, *, linked: bool) -> None:
        """Nothing more comes of what went there that way."""
        self._loads.pop(replica, None)
        for stream in self._of(replica, linked=linked):
            stream.avoid |= {replica}
            stream.replica = ""
            stream.queue.put_nowait(dead)

    def _of(self, replica: str, *, linked: bool) -> list[_Stream]:
        return [
            stream
            for stream in self._streams.values()
            if stream.replica == replica and stream.linked == linked
        ]

    async def _withdraw(
        self, admitting: asyncio.Future[tuple[Admission, Link | None]], request_id: str
    ) -> None:
        """Cancel a request that nobody waits for any more, should a replica yet admit it."""
        try:
            admission, _ = await admitting
        except CALL_LOST:
            return
        except asyncio.CancelledError:
            return
        if admission.refusal is None:
            await self._cancel(admission.replica, request_id)

    def _beside(self, work: Coroutine[Any, Any, None]) -> None:
        task = _apart(work)
        self._loose_ends.add(task)
        task.add_done_callback(self._loose_ends.discard)

    def _gone(self, replica: str) -> None:
        self._loads.pop(replica, None)

    async def _cancel(self, replica: str, request_id: str) -> None:
        if (link := self._links.made(replica)) is not None:
            link.cancel([request_id])
            return
        await self._call(replica, "cancel", [request_id])

    async def _call(self, replica: str, method: str, of: object) -> None:
        """By Ray Serve, what needs no answer."""
        try:
            call = getattr(self._handle, method).remote(Ticket(replica=replica), of)
            await asyncio.wait_for(call, self._config.admit_s)
        except CALL_LATE:
            LOG.info("nothing came of %s: replica %s is gone", method, replica)

    async def _watch(self) -> None:
        """Ask one replica after another how it is, so that health and loads are known; one that
        does not answer keeps nobody from asking the next."""
        while True:
            await asyncio.sleep(self._config.watch_s)
            self._beside(self._ask())

    async def _ask(self) -> None:
        asked_s = _now_s()
        try:
            call = self._handle.report.remote(Ticket(probe=True))
            report = await asyncio.wait_for(call, self._config.silence_s)
        except CALL_LATE:
            return  # ``check`` notices the silence
        self._hear(report)
        if report.dead is None:
            await self._adapters.hear(report, asked_s)

    def _hear(self, report: Report) -> None:
        if report.dead is not None:
            error = report.dead.error()
            assert isinstance(error, EngineDead)
            self._dead = error
            self._loads.pop(report.replica, None)
            return
        self._dead = None
        self._report = report
        self._heard_s = _now_s()
        self._loads[report.replica] = (self._heard_s, report.load)
        if self._links.made(report.replica) is None:
            self._beside(self._link(report.replica))
        oldest_s = self._heard_s - FORGET_AFTER * self._config.silence_s
        for silent in [name for name, (at_s, _) in self._loads.items() if at_s < oldest_s]:
            self._gone(silent)


def _apart(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """``work`` as a task that belongs to no HTTP request: Ray Serve cancels the calls of a request
    whose client went away, and may swap the places of those that wait to be routed."""
    return asyncio.get_running_loop().create_task(work, context=contextvars.Context())


def _now_s() -> float:
    return asyncio.get_running_loop().time()


def _lost_with(replica: str) -> Admission:
    return Admission(replica, Refusal.of(_lost()))


def _lost(error: Exception | str = "") -> EngineDead:
    return EngineDead(
        "the replica that answered was lost",
        got=(str(error).strip().splitlines() or [""])[0][:200],
        fix="send the request again",
    )
