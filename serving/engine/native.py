"""Our own engine: a thread that computes step after step, and an event loop that hears of it."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from serving.engine.adapters import EngineAdapters
from serving.engine.checks import check_prompt, check_request
from serving.engine.config import EngineConfig
from serving.engine.grammar import Grammars, GrammarState
from serving.engine.protocol import EngineFacts, EngineLoad
from serving.engine.worker import Worker
from serving.errors import EngineDead, InvalidRequest, Overloaded
from serving.lora.facts import AdapterFacts, Residency
from serving.lora.names import AdapterNames
from serving.request import Delta, Finish, Request, Usage


@dataclass(frozen=True)
class _Admit:
    request: Request
    adapter: AdapterFacts | None
    grammar: GrammarState | None


@dataclass(frozen=True)
class _Loaded:
    """An adapter has come, or cannot come."""


@dataclass(frozen=True)
class _Prioritise:
    priorities: Mapping[str, int]


@dataclass(frozen=True)
class _Cancel:
    request_id: str


@dataclass(frozen=True)
class _Embed:
    prompts: list[list[int]]
    answer: asyncio.Future[list[list[float]]]


@dataclass(frozen=True)
class _Close:
    pass


_Message = _Admit | _Loaded | _Prioritise | _Cancel | _Embed | _Close


class NativeEngine:
    """The ``Engine`` whose techniques are ours. ``build_worker`` loads the model, in the thread.

    The thread alone touches the worker. It takes messages between steps, so that whatever is
    cancelled has given its memory back when the next step begins.
    """

    def __init__(
        self,
        config: EngineConfig,
        build_worker: Callable[[], Worker],
        clock: Callable[[], float],
    ) -> None:
        self._config = config
        self._build_worker = build_worker
        self._clock = clock
        self._inbox: queue.SimpleQueue[_Message] = queue.SimpleQueue()
        self._deltas: asyncio.Queue[list[Delta] | BaseException | None] = asyncio.Queue()
        self._open: dict[str, int] = {}  # answers that have not ended, by request
        self._thread: threading.Thread | None = None
        self._adapters: EngineAdapters | None = None
        self._names = AdapterNames(config.lora, self._read)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._facts: EngineFacts | None = None
        self._grammars: Grammars | None = None
        self._load: EngineLoad | None = None
        self._beat_s = 0.0
        self._rate = 0.0  # tokens a second, of late
        self._death = ""
        self._closed = False

    @property
    def facts(self) -> EngineFacts:
        if self._facts is None:
            raise EngineDead("the engine has not started", fix="await start() first")
        return self._facts

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        started: asyncio.Future[None] = self._loop.create_future()
        self._beat_s = self._clock()
        self._thread = threading.Thread(
            target=self._run, args=(started,), name="hecate-engine", daemon=True
        )
        self._thread.start()
        await started
        await self._names.start()

    async def submit(self, request: Request) -> None:
        facts = self.facts
        self._alive()
        adapter = self._names.of(request)
        grammar = None
        if request.sampling.grammar is not None:
            assert self._grammars is not None
            grammar = await asyncio.to_thread(self._grammars.state, request.sampling.grammar)
        load = self.load()
        most = self._config.scheduling.max_sequences
        block_tokens = self._config.memory.block_tokens
        check_request(
            request,
            facts,
            max_sequences=most,
            memory_tokens=load.blocks_total * block_tokens,
            taken=request.request_id in self._open,
        )
        admitted = sum(self._open.values())
        if admitted + request.n > most + self._config.max_waiting:
            raise Overloaded(
                "too many requests are waiting",
                got=f"{admitted} answers under way or waiting",
                fix="try again later",
                retry_after_s=max(1.0, load.tokens_in_flight / max(self._rate, 1.0) / 2),
            )
        if not self._open:
            self._beat_s = self._clock()  # it was idle, which is no stall
        self._open[request.request_id] = request.n
        self._inbox.put(_Admit(request, adapter, grammar))

    async def prioritise(self, priorities: Mapping[str, int]) -> None:
        if known := {name: at for name, at in priorities.items() if name in self._open}:
            self._inbox.put(_Prioritise(known))

    async def cancel(self, request_id: str) -> None:
        if request_id in self._open:
            self._inbox.put(_Cancel(request_id))

    async def steps(self) -> AsyncIterator[Sequence[Delta]]:
        while True:
            deltas = await self._deltas.get()
            if deltas is None or isinstance(deltas, BaseException):
                self._deltas.put_nowait(deltas)  # a later reader is told the same
                if deltas is None:
                    return
                raise deltas
            yield deltas

    async def embed(self, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
        self._alive()
        assert self._loop is not None
        answer: asyncio.Future[list[list[float]]] = self._loop.create_future()
        for prompt in prompts:
            check_prompt(prompt, self.facts)
        self._inbox.put(_Embed([list(prompt) for prompt in prompts], answer))
        return await answer

    async def load_adapter(self, name: str, folder: str) -> AdapterFacts:
        self._alive()
        return await self._names.load(name, folder)

    async def unload_adapter(self, name: str) -> None:
        await self._names.unload(name)

    def adapters(self) -> Sequence[AdapterFacts]:
        return self._names.all()

    def residency(self) -> Residency:
        return Residency() if self._adapters is None else self._adapters.residency()

    def load(self) -> EngineLoad:
        if self._load is None:
            raise EngineDead("the engine has not started", fix="await start() first")
        return replace(self._load, waiting=self._load.waiting + self._inbox.qsize())

    def check(self) -> None:
        self._alive()
        late_s = self._clock() - self._beat_s
        if self._open and late_s > self._config.stall_s:
            raise EngineDead(
                "the engine hangs",
                got=f"no step for {late_s:.0f} s, with {len(self._open)} requests open",
                expected=f"one every {self._config.stall_s:.0f} s at least",
                fix="replace the replica; raise engine.stall_s if steps are that long",
            )

    async def close(self) -> None:
        if self._thread is None:
            self._closed = True
            return
        self._names.stop()
        if not self._closed:
            self._closed = True
            self._inbox.put(_Close())
        await asyncio.to_thread(self._thread.join)

    def _read(self, name: str, folder: str) -> AdapterFacts:
        if self._adapters is None:
            raise InvalidRequest(
                "this engine serves no adapters",
                got="lora.slots 0",
                fix="set engine.lora.slots",
                param="lora_name",
            )
        return self._adapters.read(name, folder)

    def _alive(self) -> None:
        if self._death:
            raise EngineDead("the engine has died", got=self._death, fix="replace the replica")
        if self._closed:
            raise EngineDead("the engine is closed")
        if self._thread is None or not self._thread.is_alive():
            raise EngineDead("the engine does not run", fix="await start() first")

    # What follows runs in the thread, but for what it hands to ``_tell``.

    def _tell(self, function: Callable[..., object], *args: object) -> None:
        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *args)

    def _run(self, started: asyncio.Future[None]) -> None:
        torch.get_num_threads()  # a thread's first call reads the environment, over what was set
        if self._config.threads:
            torch.set_num_threads(self._config.threads)
        try:
            worker = self._build_worker()
        except Exception as error:
            self._death = _first_line(error)
            self._tell(_fail, started, error)
            return
        self._facts, self._load = worker.facts, worker.load()
        self._grammars = worker.grammars
        self._adapters = worker.adapters
        if self._adapters is not None:
            self._adapters.on_loaded = lambda: self._inbox.put(_Loaded())
        self._tell(_succeed, started)
        try:
            while self._step(worker):
                pass
        except Exception as error:
            self._death = _first_line(error)
            failed = worker.end_all(Finish.FAILED, "the engine has died")
            self._publish(worker, failed)
            worker.close()
            dead = EngineDead("the engine has died", got=self._death, fix="replace the replica")
            dead.__cause__ = error
            self._tell(self._deltas.put_nowait, dead)
            self._refuse_rest(dead)
            return
        self._publish(worker, worker.end_all(Finish.CANCELLED))
        worker.close()
        self._refuse_rest(EngineDead("the engine is closed"))
        self._tell(self._deltas.put_nowait, None)

    def _step(self, worker: Worker) -> bool:
        """Take what came in, then compute one step; false when it is to end."""
        deltas: list[Delta] = []
        while not worker.ready or not self._inbox.empty():
            message = self._inbox.get()
            self._beat_s = self._clock()
            if isinstance(message, _Close):
                self._publish(worker, deltas)
                return False
            if isinstance(message, _Admit):
                worker.add(message.request, message.adapter, message.grammar)
            elif isinstance(message, _Embed):
                self._embed(worker, message)
            elif isinstance(message, _Prioritise):
                worker.prioritise(message.priorities)
            else:
                if isinstance(message, _Cancel):
                    deltas += worker.end(message.request_id, Finish.CANCELLED)
                else:
                    deltas += worker.loaded()
                if not worker.ready:
                    self._publish(worker, deltas)
                    deltas = []
        began_s = self._clock()
        made = worker.step()
        self._beat_s = self._clock()
        self._rate += 0.1 * (len(made) / max(self._beat_s - began_s, 1e-6) - self._rate)
        self._publish(worker, deltas + made)
        return True

    def _embed(self, worker: Worker, message: _Embed) -> None:
        try:
            vectors = worker.embed(message.prompts)
        except Exception as error:
            self._tell(_fail, message.answer, error)
            raise
        self._tell(_succeed, message.answer, vectors)

    def _publish(self, worker: Worker, deltas: list[Delta]) -> None:
        self._load = worker.load()
        if deltas:
            self._tell(self._received, deltas)

    def _received(self, deltas: list[Delta]) -> None:
        for delta in deltas:
            if delta.finish:
                self._open[delta.request_id] -= 1
                if not self._open[delta.request_id]:
                    del self._open[delta.request_id]
        self._deltas.put_nowait(deltas)

    def _refuse_rest(self, error: EngineDead) -> None:
        """Whatever came in too late for a step still gets its answer."""
        finish = Finish.FAILED if self._death else Finish.CANCELLED
        while not self._inbox.empty():
            message = self._inbox.get()
            if isinstance(message, _Embed):
                self._tell(_fail, message.answer, error)
            elif isinstance(message, _Admit):
                self._tell(self._received, _unanswered(message.request, finish, error.what))


def _unanswered(request: Request, finish: Finish, error: str) -> list[Delta]:
    usage = Usage(len(request.prompt), 0, 0)
    return [
        Delta(request.request_id, index, (), "", usage, finish=finish, error=error)
        for index in range(request.n)
    ]


def _succeed(future: asyncio.Future[object], value: object = None) -> None:
    if not future.done():
        future.set_result(value)


def _fail(future: asyncio.Future[object], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
