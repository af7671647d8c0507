"""An engine without a model: it answers what it was asked, token by token, by a fixed rule.

It keeps the whole contract of ``serving.engine.protocol``, so that what stands above an engine can
be tested for what it does alone. Of a conversation it repeats what the user said last, of any other
prompt the prompt itself; token after token, then it stops. Answer ``i`` of a request begins ``i``
tokens later. The chosen token has log-probability -0.5, and the next ids -1.5, -2.5, ...
"""

from __future__ import annotations

import asyncio
import codecs
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from serving.api.prompts import Prompts
from serving.engine.config import EngineConfig
from serving.engine.protocol import EngineFacts, EngineLoad
from serving.errors import ContextTooLong, EngineDead, Overloaded
from serving.lora.facts import AdapterFacts, Residency
from serving.lora.registry import Registry
from serving.request import Delta, Finish, Request, TokenLogprobs, Usage

SPECIAL = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"]
TEMPLATE = (
    "{% if tools %}<|system|>Tools, called as <tool_call>...</tool_call>: {{ tools | tojson }}"
    "<|end|>{% endif %}{% for m in messages %}"
    "{% if m.role == 'developer' %}{{ raise_exception('no developers here') }}{% endif %}"
    "{{ '<|' + m.role + '|>' + m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}"
    "<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TEXTS = ["hello there, how are you today? the weather is fine", '{"name": "f", "arguments": {}}']
CRASH = "die now"
HOLD = "hold on"


def toy_tokenizer() -> PreTrainedTokenizerFast:
    """A real byte-level BPE of 300 tokens, with a chat template that knows tools."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 10, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")
    fast.chat_template = TEMPLATE
    return fast


def save_toy_tokenizer(folder: Path) -> Path:
    toy_tokenizer().save_pretrained(folder)
    return folder


@dataclass
class _Answer:
    script: tuple[int, ...]
    text: str = ""
    shown: int = 0
    made: int = 0
    done: bool = False
    decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace")
    )


def rule_engine(config: EngineConfig, **settings: Any) -> RuleEngine:
    """In ``build_engine``'s place."""
    return RuleEngine(**settings)


class RuleEngine:
    """``step_s`` between steps; ``most`` requests at once, more are refused; ``facts`` of a toy.

    The adapter of every request that came is resident.
    A prompt with ``CRASH`` in it kills the engine in its next step, as a bug of one would; to one
    with ``HOLD`` in it the answer begins ``hold_steps`` later.
    """

    def __init__(
        self,
        *,
        step_s: float = 0.0,
        most: int = 64,
        max_tokens: int = 1024,
        hold_steps: int = 0,
    ) -> None:
        self._tokenizer = toy_tokenizer()
        self._prompts = Prompts(self._tokenizer)
        self._step_s = step_s
        self._most = most
        self._hold_steps = hold_steps
        self._held: dict[str, int] = {}
        self._running: dict[str, tuple[Request, list[_Answer]]] = {}
        self._made: asyncio.Queue[list[Delta] | None] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._dead: EngineDead | None = None
        self._names = Registry()
        self._names.assign(AdapterFacts("twin", "1" * 64, "", 8, 0))
        self._resident: dict[str, None] = {}
        self.cancelled: list[str] = []
        self.seen: list[Request] = []
        self.priorities: dict[str, int] = {}
        self._steps = self._prompt_tokens = self._generated = 0
        self._facts = EngineFacts(
            model="toy",
            digest="0" * 64,
            family="rule",
            vocab_size=len(self._tokenizer),
            max_tokens=max_tokens,
            max_sequences=most,
            eos_token_ids=(0,),
            embeds=True,
        )

    @property
    def facts(self) -> EngineFacts:
        return self._facts

    async def start(self) -> None:
        self._task = asyncio.ensure_future(self._run())

    async def submit(self, request: Request) -> None:
        if self._dead:
            raise self._dead
        if len(request.prompt) + request.sampling.max_tokens > self._facts.max_tokens:
            raise ContextTooLong("too long")
        if request.adapter:
            facts = self._names.find(request.adapter, request.adapter_digest)
            self._resident[facts.digest] = None
        if len(self._running) >= self._most:
            raise Overloaded("too much is waiting", retry_after_s=1.2)
        script = self._script(request)
        self._running[request.request_id] = (
            request,
            [_Answer(script[at:]) for at in range(request.n)],
        )
        held = HOLD in self._tokenizer.decode(request.prompt)
        self._held[request.request_id] = self._hold_steps if held else 0
        self.seen.append(request)
        self._prompt_tokens += len(request.prompt)

    async def prioritise(self, priorities: Mapping[str, int]) -> None:
        self.priorities.update(priorities)

    async def cancel(self, request_id: str) -> None:
        if self._running.pop(request_id, None):
            del self._held[request_id]
            self.cancelled.append(request_id)

    async def steps(self) -> AsyncIterator[Sequence[Delta]]:
        while (deltas := await self._made.get()) is not None:
            yield deltas
        if self._dead:
            raise self._dead

    async def embed(self, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
        return [[1.0 if at == prompt[0] % 4 else 0.0 for at in range(4)] for prompt in prompts]

    async def load_adapter(self, name: str, folder: str) -> AdapterFacts:
        facts = AdapterFacts(name, f"{name} in {folder}", folder, 8, 0)
        self._names.assign(facts)
        return facts

    async def unload_adapter(self, name: str) -> None:
        self._names.remove(name)

    def adapters(self) -> Sequence[AdapterFacts]:
        return self._names.all()

    def residency(self) -> Residency:
        return Residency(tuple(self._resident))

    def load(self) -> EngineLoad:
        flight = sum(len(r.prompt) + r.sampling.max_tokens for r, _ in self._running.values())
        return EngineLoad(
            waiting=0,
            running=len(self._running),
            tokens_in_flight=flight,
            blocks_used=0,
            blocks_cached=0,
            blocks_total=8,
            steps_total=self._steps,
            prompt_tokens_total=self._prompt_tokens,
            generated_tokens_total=self._generated,
            prefix_query_tokens_total=self._prompt_tokens,
            prefix_hit_tokens_total=0,
            preemptions_total=0,
        )

    def check(self) -> None:
        if self._dead:
            raise self._dead

    async def close(self) -> None:
        self._running.clear()
        if self._task:
            self._task.cancel()
        self._made.put_nowait(None)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._step_s)
            if not self._running:
                await asyncio.sleep(0.001)
                continue
            for request, _ in self._running.values():
                if CRASH in self._tokenizer.decode(request.prompt):
                    self._dead = EngineDead("the engine met its end")
                    self._made.put_nowait(None)
                    return
            self._steps += 1
            self._made.put_nowait(self._step())

    def _step(self) -> list[Delta]:
        deltas = []
        for name, (request, answers) in list(self._running.items()):
            if self._held[name]:
                self._held[name] -= 1
                continue
            for index, answer in enumerate(answers):
                if not answer.done:
                    deltas.append(self._next(request, index, answer, answers))
            if all(answer.done for answer in answers):
                del self._running[name], self._held[name]
        return deltas

    def _next(self, request: Request, index: int, answer: _Answer, all_: list[_Answer]) -> Delta:
        sampling = request.sampling
        token = answer.script[answer.made] if answer.made < len(answer.script) else 0
        answer.made += 1
        self._generated += 1
        finish: Finish | None = None
        if token == 0 and not sampling.ignore_eos:
            finish = Finish.STOP
        else:
            answer.text += answer.decoder.decode(self._prompts.token_text(token)[1])
        if finish is None and answer.made == sampling.max_tokens:
            finish = Finish.LENGTH
        shown = len(answer.text)
        for stop in sampling.stop:
            if (at := answer.text.find(stop)) >= 0:
                shown, finish = min(shown, at), Finish.STOP
            elif finish is None:
                sizes = range(1, len(stop))
                held = max((n for n in sizes if answer.text.endswith(stop[:n])), default=0)
                shown = min(shown, len(answer.text) - held)
        text = answer.text[answer.shown : shown]
        answer.shown = max(shown, answer.shown)
        answer.done = finish is not None
        logprobs: tuple[TokenLogprobs, ...] = ()
        if sampling.logprobs >= 0:
            logprobs = (self._logprobs(token, sampling.logprobs),)
        usage = Usage(len(request.prompt), 0, sum(one.made for one in all_))
        scores: tuple[TokenLogprobs, ...] = ()
        if sampling.prompt_logprobs >= 0 and answer.made == 1:
            scores = tuple(
                self._logprobs(each, sampling.prompt_logprobs) for each in request.prompt[1:]
            )
        return Delta(
            request.request_id,
            index,
            (token,),
            text,
            usage,
            logprobs,
            finish,
            prompt_logprobs=scores,
        )

    def _logprobs(self, token: int, count: int) -> TokenLogprobs:
        top = ((token + at) % self._facts.vocab_size for at in range(count))
        return TokenLogprobs(token, -0.5, tuple((each, -0.5 - at) for at, each in enumerate(top)))

    def _script(self, request: Request) -> tuple[int, ...]:
        prompt = list(request.prompt)
        if SPECIAL.index("<|user|>") not in prompt:
            return tuple(prompt)
        begin = len(prompt) - prompt[::-1].index(SPECIAL.index("<|user|>"))
        said = prompt[begin:]
        return tuple(said[: said.index(0)] if 0 in said else said)
