"""One step of the native engine: schedule, compute, sample, and say what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch

from serving.caches.prefix.protocol import scope_of
from serving.engine.adapters import EngineAdapters
from serving.engine.batch import whole_batch
from serving.engine.forward import Forward
from serving.engine.grammar import Grammars, GrammarState
from serving.engine.layout import lay_out
from serving.engine.loading import LoadedModel, embed
from serving.engine.protocol import EngineFacts, EngineLoad
from serving.engine.sampler import Row, penalised, sample, token_logprobs
from serving.engine.text import Decode, TextPieces
from serving.lora.facts import AdapterFacts
from serving.lora.gate import Passed
from serving.memory.blocks import BlockPool
from serving.memory.tiered import TieredKV
from serving.request import Delta, Finish, Request, TokenLogprobs, Usage
from serving.scheduling.costs import RecoveryCosts
from serving.scheduling.decisions import ScheduleDecision
from serving.scheduling.scheduler import Scheduler
from serving.scheduling.sequences import Sequence


@dataclass
class _Asked:
    """A request on its way, over all its answers."""

    request: Request
    seed: int
    adapter: AdapterFacts | None = None
    grammar: GrammarState | None = None
    cached: int = 0
    generated: int = 0
    scores: list[TokenLogprobs] = field(default_factory=list)  # of the prompt, where asked for
    open: dict[int, Sequence] = field(default_factory=dict)
    """Answers that have a sequence, by index; the others branch off the first. None while the
    adapter is not on the device."""


class Worker:
    """Owns the model and its memory; everything runs in the caller's thread.

    ``decode``: tokens to text. ``draw_seed``: for requests that name none. ``recovery``: is told
    how long copies and prompts take, where there is a choice between them.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        forward: Forward,
        facts: EngineFacts,
        scheduler: Scheduler,
        pool: BlockPool,
        kv: TieredKV,
        decode: Decode,
        draw_seed: Callable[[], int],
        clock: Callable[[], float],
        grammars: Grammars,
        adapters: EngineAdapters | None = None,
        recovery: RecoveryCosts | None = None,
    ) -> None:
        self.adapters = adapters
        self.grammars = grammars
        self.facts = facts
        self._loaded = loaded
        self._forward = forward
        self._scheduler = scheduler
        self._pool = pool
        self._kv = kv
        self._decode = decode
        self._draw_seed = draw_seed
        self._clock = clock
        self._recovery = recovery
        self._asked: dict[str, _Asked] = {}
        self._texts: dict[int, TextPieces] = {}
        self._grammars: dict[int, GrammarState] = {}
        self._steps = self._prompt_tokens = self._generated = 0
        self._busy_s = 0.0

    @property
    def busy(self) -> bool:
        return bool(self._asked)

    @property
    def ready(self) -> bool:
        """Whether a step would compute something; else what is there waits for adapters."""
        return bool(self._scheduler.waiting or self._scheduler.running)

    def add(
        self,
        request: Request,
        adapter: AdapterFacts | None = None,
        grammar: GrammarState | None = None,
    ) -> None:
        """Queue a request that was checked, once its ``adapter`` is on the device.

        ``grammar``: where its answers begin, if they have to be of a form.
        """
        seed = request.sampling.seed
        asked = _Asked(request, self._draw_seed() if seed is None else seed, adapter, grammar)
        self._asked[request.request_id] = asked
        if adapter is None:
            self._schedule(asked)
        else:
            assert self.adapters is not None
            self._pass(self.adapters.enter(request.request_id, adapter, len(request.prompt)))

    def prioritise(self, priorities: Mapping[str, int]) -> None:
        """Also those that wait for their adapter."""
        self._scheduler.prioritise(priorities)
        for request_id, priority in priorities.items():
            asked = self._asked.get(request_id)
            if asked is not None and not asked.open:
                asked.request = replace(asked.request, priority=priority)

    def loaded(self) -> list[Delta]:
        """Go on with those whose adapter has come; the end of those whose adapter cannot."""
        assert self.adapters is not None
        return self._pass(self.adapters.loaded())

    def _schedule(self, asked: _Asked) -> None:
        request = asked.request
        adapter = asked.adapter.digest if asked.adapter is not None else ""
        scope = scope_of(self._loaded.digest, adapter, request.tenant)
        asked.open[0] = self._scheduler.add(request, scope)
        self._texts[asked.open[0].sequence_id] = self._pieces(request)
        if asked.grammar is not None:
            self._grammars[asked.open[0].sequence_id] = asked.grammar

    def _pass(self, passed: Passed) -> list[Delta]:
        for request_id in passed.ready:
            self._schedule(self._asked[request_id])
        return [
            delta
            for request_id, error in passed.failed
            for delta in self.end(request_id, Finish.FAILED, error)
        ]

    def _leave(self, asked: _Asked) -> list[Delta]:
        """A request has ended: others may go on with its adapter's place."""
        if asked.adapter is None:
            return []
        assert self.adapters is not None
        return self._pass(self.adapters.leave(asked.request.request_id))

    def end(self, request_id: str, finish: Finish, error: str = "") -> list[Delta]:
        """End a request with what it has; unknown ids are fine."""
        asked = self._asked.pop(request_id, None)
        if asked is None:
            return []
        started = set(asked.open) or set(range(asked.request.n))
        first = asked.open.get(0)
        if first is not None and first.forks:
            started |= set(range(1, asked.request.n))
        for sequence in asked.open.values():
            self._scheduler.remove(sequence)
            del self._texts[sequence.sequence_id]
            self._grammars.pop(sequence.sequence_id, None)
        ended = [
            Delta(request_id, index, (), "", _usage(asked), finish=finish, error=error)
            for index in sorted(started)
        ]
        return ended + self._leave(asked)

    def end_all(self, finish: Finish, error: str = "") -> list[Delta]:
        """End every request."""
        return [delta for name in list(self._asked) for delta in self.end(name, finish, error)]

    def close(self) -> None:
        """End what runs beside the steps."""
        if self.adapters is not None:
            self.adapters.close()

    def step(self) -> list[Delta]:
        """Compute one batch; what it added to which answers."""
        begun_s = self._clock()
        made = self._step()
        self._busy_s += self._clock() - begun_s
        return made

    def _step(self) -> list[Delta]:
        decision = self._scheduler.schedule()
        self._steps += 1
        self._transfer(decision)
        if not decision.chunks:
            return []
        sequences = [self._scheduler.sequences[chunk.sequence_id] for chunk in decision.chunks]
        layout = lay_out(decision.chunks, sequences)
        pieces = layout.pieces
        asked = [self._asked[owner.request.request_id] for owner in layout.owners]
        for chunk, sequence in zip(decision.chunks, sequences, strict=True):
            new = min(chunk.stop, len(sequence.request.prompt)) - chunk.start
            self._prompt_tokens += max(0, new)
        begun_s = self._clock()
        if any(each.adapter is not None for each in asked):
            assert self.adapters is not None
            requests = [each.request.request_id if each.adapter else "" for each in asked]
            logits_RV = self.adapters.forward(pieces, layout.wanted, requests)
        else:
            logits_RV = self._forward(pieces, layout.wanted)
        if self._recovery is not None and len(pieces[-1].tokens) > 1:
            self._kv.finish()
            self._recovery.computed(self._clock() - begun_s, decision.num_tokens)
        self._scheduler.commit(decision)
        if layout.scoring:
            self._score(logits_RV[layout.scored_rows], layout.scoring)
            logits_RV = logits_RV[layout.sampled_rows]
        return self._extend(logits_RV, layout.sampling) if layout.sampling else []

    def _transfer(self, decision: ScheduleDecision) -> None:
        """Copy the blocks that the step needs elsewhere."""
        begun_s = self._clock()
        moved = self._kv.run(decision.transfers)
        if moved and self._recovery is not None:
            self._kv.finish()
            self._recovery.copied(self._clock() - begun_s, moved)

    def embed(self, prompts: list[list[int]]) -> list[list[float]]:
        """The mean of each prompt's last hidden states, at unit length."""
        vectors = []
        for prompt in prompts:
            batch = whole_batch([prompt], self._kv.paged.device)
            vectors.append(embed(self._loaded.model, batch).tolist())
        return vectors

    def load(self) -> EngineLoad:
        """How busy it is, after the last step."""
        scheduler, preemption = self._scheduler, self._scheduler.preemption
        in_flight = sum(
            sequence.pending
            + (1 + sequence.forks) * sequence.request.sampling.max_tokens
            - sequence.generated
            for sequence in scheduler.sequences.values()
        )
        parked = [asked.request for asked in self._asked.values() if not asked.open]
        in_flight += sum(len(r.prompt) + r.n * r.sampling.max_tokens for r in parked)
        return EngineLoad(
            waiting=scheduler.waiting + len(parked),
            running=scheduler.running,
            tokens_in_flight=in_flight,
            blocks_used=self._pool.used,
            blocks_cached=scheduler.blocks_cached,
            blocks_total=self._pool.total,
            steps_total=self._steps,
            prompt_tokens_total=self._prompt_tokens,
            generated_tokens_total=self._generated,
            prefix_query_tokens_total=scheduler.prefix_query_tokens_total,
            prefix_hit_tokens_total=scheduler.prefix_hit_tokens_total,
            preemptions_total=preemption.preemptions_total,
            swapped_blocks=preemption.swapped_blocks,
            swap_outs_total=preemption.swap_outs_total,
            swap_ins_total=preemption.swap_ins_total,
            recomputed_tokens_total=scheduler.recomputed_tokens_total,
            busy_s_total=self._busy_s,
            adapters_on_device=0 if self.adapters is None else self.adapters.on_device,
            adapter_loads_total=0 if self.adapters is None else self.adapters.loads_total,
        )

    def _score(self, logits_RV: torch.Tensor, scoring: list[tuple[Sequence, int]]) -> None:
        """Keep what each row says of the token of the prompt that comes after its position."""
        tokens = [sequence.request.prompt[at + 1] for sequence, at in scoring]
        counts = [sequence.request.sampling.prompt_logprobs for sequence, _ in scoring]
        found = token_logprobs(logits_RV, tokens, counts)
        for (sequence, _), one in zip(scoring, found, strict=True):
            self._asked[sequence.request.request_id].scores.append(one)

    def _extend(self, logits_RV: torch.Tensor, sampling: list[Sequence]) -> list[Delta]:
        """Sample for each of ``sampling``, whose logits are the rows in order."""
        rows: list[Row] = []
        targets: list[Sequence] = []
        for place, sequence in enumerate(sampling):
            asked = self._asked[sequence.request.request_id]
            asked.cached = max(asked.cached, sequence.cached)
            forks = self._scheduler.fork(sequence) if sequence.forks else []
            for fork in forks:
                asked.open[fork.index] = fork
                self._texts[fork.sequence_id] = self._pieces(fork.request)
                if asked.grammar is not None:
                    self._grammars[fork.sequence_id] = asked.grammar.fork()
            for target in (sequence, *forks):
                rows.append(self._row(place, target, asked.seed))
                targets.append(target)
        sampled = sample(logits_RV, rows)
        self._generated += len(rows)
        for target in targets:
            self._asked[target.request.request_id].generated += 1
        ended: list[_Asked] = []
        deltas = [
            self._delta(target, token, logprobs, ended)
            for target, token, logprobs in zip(
                targets, sampled.tokens, sampled.logprobs, strict=True
            )
        ]
        return deltas + [delta for asked in ended for delta in self._leave(asked)]

    def _row(self, place: int, sequence: Sequence, seed: int) -> Row:
        sampling = sequence.request.sampling
        banned: tuple[int, ...] = ()
        if sequence.generated < sampling.min_tokens:
            banned = tuple({*self.facts.eos_token_ids, *sampling.stop_token_ids})
        answer: list[int] = []
        if penalised(sampling):  # a copy of every answer at every step would be quadratic
            answer = sequence.tokens[len(sequence.request.prompt) :]
        return Row(
            place,
            sampling,
            seed,
            sequence.index,
            sequence.generated,
            sequence.request.prompt,
            answer,
            banned,
            self._grammars.get(sequence.sequence_id),
        )

    def _delta(
        self,
        sequence: Sequence,
        token: int,
        logprobs: TokenLogprobs | None,
        ended: list[_Asked],
    ) -> Delta:
        request, sampling = sequence.request, sequence.request.sampling
        sequence.tokens.append(token)
        ends = token in sampling.stop_token_ids
        ends |= not sampling.ignore_eos and token in self.facts.eos_token_ids
        ends &= sequence.generated >= sampling.min_tokens
        pieces = self._texts[sequence.sequence_id]
        text = "" if ends else pieces.push(token)
        if (grammar := self._grammars.get(sequence.sequence_id)) is not None:
            grammar.advance(token)
            ends |= grammar.ended
        finish = None
        if ends or pieces.stopped:
            finish = Finish.STOP
        elif sequence.generated >= sampling.max_tokens:
            finish = Finish.LENGTH
        asked = self._asked[request.request_id]
        if finish:
            text += pieces.finish()
            if pieces.stopped:
                finish = Finish.STOP
            self._scheduler.remove(sequence)
            del self._texts[sequence.sequence_id], asked.open[sequence.index]
            self._grammars.pop(sequence.sequence_id, None)
            if not asked.open:
                ended.append(self._asked.pop(request.request_id))
        return Delta(
            request.request_id,
            sequence.index,
            (token,),
            text,
            _usage(asked),
            () if logprobs is None else (logprobs,),
            finish,
            prompt_logprobs=tuple(asked.scores) if sequence.generated == 1 else (),
        )

    def _pieces(self, request: Request) -> TextPieces:
        return TextPieces(self._decode, request.prompt, request.sampling.stop)


def _usage(asked: _Asked) -> Usage:
    return Usage(len(asked.request.prompt), asked.cached, asked.generated)
