"""Greedy answers equal ``transformers.generate``, whatever shares the batch and the memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from served import (
    SERVED,
    Answers,
    answer_all,
    engine_config,
    greedy,
    save_served,
    token_bytes,
    with_engine,
)
from transformers import PreTrainedModel

from serving.engine.protocol import Engine, EngineLoad
from serving.request import Request

SMALLEST_GAP = 1e-4  # between the two likeliest logits: below it rounding may choose another token
TOKENS = 20


def _prompts() -> list[tuple[int, ...]]:
    """Lengths 1 to 41, some with a beginning in common."""
    generator = torch.Generator().manual_seed(1)
    common = torch.randint(2, 300, (18,), generator=generator).tolist()
    prompts = []
    for length in (1, 3, 7, 16, 23, 30):
        own = torch.randint(2, 300, (length,), generator=generator).tolist()
        prompts.append(tuple(own))
        prompts.append(tuple(common + own[:23]))
    return prompts


def _reference(model: PreTrainedModel, prompt: tuple[int, ...]) -> tuple[list[int], list[float]]:
    """Tokens of ``generate``, and each one's lead over the next likeliest."""
    out = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=TOKENS,
        do_sample=False,
        eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
    )
    leads = [float(-logits[0].topk(2).values.diff()) for logits in out.logits]
    return out.sequences[0, len(prompt) :].tolist(), leads


@pytest.mark.parametrize("family", SERVED)
def test_answers_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    model = save_served(tmp_path, family)
    prompts = _prompts()
    requests = [Request(f"{i}", prompt, greedy(TOKENS)) for i, prompt in enumerate(prompts)]

    async def twice(engine: Engine) -> tuple[Answers, Answers, EngineLoad]:
        first = await answer_all(engine, requests)
        again = [Request(f"again-{r.request_id}", r.prompt, r.sampling) for r in requests]
        return first, await answer_all(engine, again), engine.load()

    # 24 blocks hold two or three answers of five, and no prompt above 11 tokens fits one chunk.
    config = engine_config(
        tmp_path, blocks=24, token_bytes=token_bytes(model), max_sequences=5, max_batch_tokens=11
    )
    first, second, load = with_engine(config, twice)
    assert load.blocks_total == 24
    assert load.preemptions_total > 0
    assert 0 < load.prefix_hit_tokens_total < load.prefix_query_tokens_total
    near_ties = 0
    for i, prompt in enumerate(prompts):
        expected, leads = _reference(model, prompt)
        for answer in (first[f"{i}", 0], second[f"again-{i}", 0]):
            assert len(answer.tokens) == TOKENS
            for got, token, lead in zip(answer.tokens, expected, leads, strict=True):
                if got != token:
                    assert lead < SMALLEST_GAP, f"prompt {i}: {got} for {token}, which leads {lead}"
                    near_ties += 1
                    break
    print(f"{family}: {near_ties} near ties of {2 * len(prompts)} answers")
    assert near_ties <= 2
    assert len({tuple(answer.tokens) for answer in first.values()}) > len(prompts) // 2
