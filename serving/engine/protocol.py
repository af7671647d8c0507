"""What everything above an engine may assume of it; engines are ``native`` and ``vllm``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from serving.lora.facts import AdapterFacts, Residency
from serving.request import Delta, Request


@dataclass(frozen=True)
class EngineFacts:
    """What does not change while an engine lives.

    ``model``: the name that it is served under. ``digest``: of its weights and configuration.
    ``max_tokens``: prompt and answer together. ``max_sequences``: answers in one step at most.
    ``embeds``: whether ``embed`` works.
    """

    model: str
    digest: str
    family: str
    vocab_size: int
    max_tokens: int
    max_sequences: int
    eos_token_ids: tuple[int, ...]
    embeds: bool


@dataclass(frozen=True)
class EngineLoad:
    """How busy an engine is, now. ``*_total`` only grow, so that a rate is a difference.

    ``tokens_in_flight``: what admitted requests may still come to compute, prompts and answers.
    ``blocks_cached``: of those used, the ones in the prefix cache, which give way to others; the
    rest is held by what is being answered. ``prefix_hit_tokens_total`` of
    ``prefix_query_tokens_total``: of prompts, what was cached.
    Of ``preemptions_total``, ``swap_outs_total`` had their blocks copied to the host, where
    ``swapped_blocks`` are now; ``recomputed_tokens_total`` were lost and computed once more.
    ``busy_s_total``: seconds in steps; 0 where an engine cannot tell.
    ``adapters_on_device``: with those on their way there; ``adapter_loads_total`` were brought.
    """

    waiting: int
    running: int
    tokens_in_flight: int
    blocks_used: int
    blocks_cached: int
    blocks_total: int
    steps_total: int
    prompt_tokens_total: int
    generated_tokens_total: int
    prefix_query_tokens_total: int
    prefix_hit_tokens_total: int
    preemptions_total: int
    swapped_blocks: int = 0
    swap_outs_total: int = 0
    swap_ins_total: int = 0
    recomputed_tokens_total: int = 0
    busy_s_total: float = 0.0
    adapters_on_device: int = 0
    adapter_loads_total: int = 0


class Engine(Protocol):
    """Answers requests; one caller, on one event loop, which none of these holds up.

    Deltas of a request come in the order in which its tokens were made; of one that was admitted,
    every answer gets exactly one delta with ``finish``, after which nothing more comes of it.
    """

    @property
    def facts(self) -> EngineFacts: ...

    async def start(self) -> None:
        """Load, so that the next request is answered at once. Raises ``ModelError``."""
        ...

    async def submit(self, request: Request) -> None:
        """Admit ``request``; its deltas come from ``steps``.

        Raises ``InvalidRequest`` (``ContextTooLong`` among them), ``ModelNotFound`` for an adapter
        that is not there or means another content, ``Overloaded``, and ``EngineDead``.
        """
        ...

    async def prioritise(self, priorities: Mapping[str, int]) -> None:
        """Requests, by their ids, have another priority from the next step on.

        What waits takes the place of what runs if it is more urgent by enough. Unknown ids are
        fine. Where an engine cannot, requests keep the priority that they came with.
        """
        ...

    async def cancel(self, request_id: str) -> None:
        """End it with the step under way: its memory is free after that. Unknown ids are fine."""
        ...

    def steps(self) -> AsyncIterator[Sequence[Delta]]:
        """What each step made, of all requests together; read by one reader, all the time.

        It ends when the engine is closed. Raises ``EngineDead`` when it died.
        """
        ...

    async def embed(self, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
        """One vector of unit length for each prompt: the mean of its last hidden states."""
        ...

    async def load_adapter(self, name: str, folder: str) -> AdapterFacts:
        """Have ``name`` mean the adapter in ``folder``; requests under way keep what it meant.

        Raises ``InvalidRequest``: ``InvalidAdapter`` for a folder without one of this model.
        """
        ...

    async def unload_adapter(self, name: str) -> None:
        """Refuse ``name`` from now on; requests under way go on. Raises ``ModelNotFound``."""
        ...

    def adapters(self) -> Sequence[AdapterFacts]:
        """Those that requests may ask for, by name."""
        ...

    def residency(self) -> Residency:
        """Where the weights of its adapters are now."""
        ...

    def load(self) -> EngineLoad: ...

    def check(self) -> None:
        """Raise ``EngineDead`` unless it lives and, with work to do, does it."""
        ...

    async def close(self) -> None:
        """Cancel what is left and give everything back; harmless when called twice."""
        ...
