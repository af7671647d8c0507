"""Log-probabilities of a prompt's own tokens equal transformers', however they were computed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft_adapters import merged, save_adapter
from served import Answer, Answers, answer_all, engine_config, greedy, save_served, with_engine
from transformers import PreTrainedModel

from serving.engine.protocol import Engine, EngineLoad
from serving.request import Request

TOP = 3
PROMPT = tuple(2 + (37 * i * i + 11 * i) % 290 for i in range(60))


def reference(model: PreTrainedModel, prompt: tuple[int, ...]) -> torch.Tensor:
    """``[P, V]``: what follows each token of ``prompt``, in fp32."""
    with torch.inference_mode():
        logits_PV = model(torch.tensor([prompt])).logits[0]
    return torch.log_softmax(logits_PV.float(), dim=-1)


def check(answer: Answer, model: PreTrainedModel, prompt: tuple[int, ...]) -> None:
    """The prompt's, and the first of the answer's as what goes on from there."""
    expected_PV = reference(model, prompt)
    scores = answer.prompt_logprobs
    assert [each.token for each in scores] == list(prompt[1:])
    for expected_V, each in zip(expected_PV, scores, strict=False):
        assert each.logprob == pytest.approx(float(expected_V[each.token]), abs=2e-4)
        values = [value for _, value in each.top]
        assert values == pytest.approx(expected_V.topk(TOP).values.tolist(), abs=2e-4)
        for token, value in each.top:
            assert value == pytest.approx(float(expected_V[token]), abs=2e-4)
    chosen = answer.logprobs[0]
    assert chosen.logprob == pytest.approx(float(expected_PV[-1].max()), abs=2e-4)


def asks(name: str, prompt: tuple[int, ...], *, n: int = 1, **more: str) -> Request:
    return Request(name, prompt, greedy(6, logprobs=1, prompt_logprobs=TOP), n=n, **more)


@pytest.mark.parametrize(
    ("family", "kernels"),
    [("qwen3", "auto"), ("qwen3", "off"), ("qwen3_moe", "auto"), ("gemma2", "auto")],
)
def test_they_are_those_of_transformers(family: str, kernels: str, tmp_path: Path) -> None:
    model = save_served(tmp_path, family)
    prompts = [PROMPT, PROMPT[:1], PROMPT[:2], PROMPT[7:30], PROMPT[:41]]
    requests = [asks(f"{i}", prompt) for i, prompt in enumerate(prompts)]
    others = [Request(f"other {i}", PROMPT[i:], greedy(9)) for i in range(3)]

    async def use(engine: Engine) -> tuple[Answers, Answers]:
        # The prompts are known to the cache by then, which must not hide what is asked for.
        alone = await answer_all(engine, others)
        return alone, await answer_all(engine, [*requests, *(again(each) for each in others)])

    alone, found = with_engine(engine_config(tmp_path, blocks=200, kernels=kernels), use)
    for i, prompt in enumerate(prompts):
        check(found[f"{i}", 0], model, prompt)
        usage = found[f"{i}", 0].usage
        assert usage is not None and usage.cached == 0
    for other in others:  # as if nobody had asked for anything
        answer = found[again(other).request_id, 0]
        assert answer.tokens == alone[other.request_id, 0].tokens and not answer.prompt_logprobs


def again(request: Request) -> Request:
    return Request(f"{request.request_id} again", request.prompt, request.sampling)


def test_in_chunks_and_preempted_and_for_several_answers(tmp_path: Path) -> None:
    model = save_served(tmp_path, "qwen3")
    prompts = [PROMPT, PROMPT[:50], PROMPT[5:], PROMPT[:33]]
    requests = [asks(f"{i}", prompt, n=1 + i % 2) for i, prompt in enumerate(prompts)]
    urgent = [
        Request(f"u{i}", PROMPT[i : i + 30], greedy(40), priority=-1, arrival_s=i) for i in range(3)
    ]

    async def use(engine: Engine) -> tuple[Answers, EngineLoad]:
        return await answer_all(engine, [*requests, *urgent]), engine.load()

    config = engine_config(
        tmp_path, blocks=34, max_sequences=8, max_batch_tokens=20, max_scored_tokens=7
    )
    found, load = with_engine(config, use)
    assert load.preemptions_total > 0
    for i, request in enumerate(requests):
        for index in range(request.n):
            check(found[f"{i}", index], model, prompts[i])
        assert len({tuple(found[f"{i}", index].tokens) for index in range(request.n)}) == 1
    assert not any(found[each.request_id, 0].prompt_logprobs for each in urgent)


def test_of_an_adapter_they_are_its_own(tmp_path: Path) -> None:
    model = save_served(tmp_path / "base", "qwen3")
    folder = save_adapter(tmp_path / "adapter", model, rank=4, scale=1.0)

    async def use(engine: Engine) -> Answers:
        await engine.load_adapter("near", str(folder))
        return await answer_all(
            engine, [asks("base", PROMPT), asks("near", PROMPT, adapter="near")]
        )

    found = with_engine(engine_config(tmp_path / "base", blocks=200), use)
    check(found["base", 0], model, PROMPT)
    check(found["near", 0], merged(model, folder), PROMPT)
    assert found["base", 0].prompt_logprobs != found["near", 0].prompt_logprobs
