from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from served import (
    VOCABULARY,
    Answer,
    Answers,
    answer_all,
    byte_tokenizer,
    collect,
    engine_config,
    greedy,
    save_served,
    served,
    with_engine,
)
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from hecate.errors import ModelError, TokenizerError
from serving.engine.build import build_engine, build_worker
from serving.engine.native import NativeEngine
from serving.engine.protocol import Engine
from serving.errors import ContextTooLong, EngineDead, InvalidRequest, ModelNotFound, Overloaded
from serving.request import Finish, Request, Sampling

PROMPT = tuple(range(5, 26))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("served")
    save_served(path, "qwen3")
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> PreTrainedModel:
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder)
    return loaded


def test_answers_of_one_prompt_share_it_and_are_each_their_own(folder: Path) -> None:
    sampling = Sampling(max_tokens=10, seed=3, ignore_eos=True)
    together = served(engine_config(folder), Request("a", PROMPT, sampling, n=4))
    texts = [tuple(together["a", index].tokens) for index in range(4)]
    assert len(set(texts)) == 4
    # The same in a small memory, where answers are preempted, beside others.
    crowd = [Request(f"c{i}", PROMPT[i:], greedy(20)) for i in range(3)]
    small = engine_config(folder, blocks=14, max_sequences=6)
    among = served(small, *crowd, Request("a", PROMPT, sampling, n=4))
    assert [tuple(among["a", index].tokens) for index in range(4)] == texts
    usage = together["a", 3].usage
    assert usage is not None and usage.generated <= 40
    assert max(a.usage.generated for a in together.values() if a.usage) == 40
    alone = served(engine_config(folder), Request("b", PROMPT, sampling))
    assert tuple(alone["b", 0].tokens) == texts[0]


def test_greedy_answers_of_one_prompt_are_equal(folder: Path) -> None:
    config = engine_config(folder, blocks=20, max_batch_tokens=8)
    answers = served(config, Request("a", PROMPT, greedy(15), n=3))
    assert len({tuple(answers["a", i].tokens) for i in range(3)}) == 1


def test_no_tenant_meets_what_another_ones_prompts_left(folder: Path) -> None:
    async def use(engine: Engine) -> list[int]:
        cached = []
        for number, tenant in enumerate(("one", "two", "one", "")):
            request = Request(f"{number}", PROMPT, greedy(2), tenant=tenant)
            answer = (await answer_all(engine, [request]))[f"{number}", 0]
            assert answer.usage is not None
            cached.append(answer.usage.cached)
        return cached

    assert with_engine(engine_config(folder), use) == [0, 0, 20, 0]
    assert with_engine(engine_config(folder, prefix="none"), use) == [0, 0, 0, 0]


def test_an_answer_ends_at_stop_strings_tokens_and_the_end_of_text(folder: Path) -> None:
    free = served(engine_config(folder), Request("a", PROMPT, greedy(12)))["a", 0]
    assert free.finish is Finish.LENGTH and len(free.tokens) == 12
    assert byte_tokenizer().decode(free.tokens) == free.text
    middle = free.text[len(free.text) // 2 :][:2]
    token = free.tokens[6]
    first = free.tokens.index(token)
    ends = [
        Request("text", PROMPT, greedy(12, stop=(middle,))),
        Request("token", PROMPT, greedy(12, stop_token_ids=(token,))),
        Request("end", PROMPT, greedy(12, logit_bias={1: 500.0}, ignore_eos=False)),
        Request("later", PROMPT, greedy(5, logit_bias={1: 500.0}, ignore_eos=False, min_tokens=3)),
        Request("ignored", PROMPT, greedy(5, logit_bias={1: 500.0})),
    ]
    answers = served(engine_config(folder), *ends)
    assert answers["text", 0].text == free.text[: free.text.index(middle)]
    assert answers["text", 0].finish is Finish.STOP
    assert answers["token", 0].tokens == free.tokens[: first + 1]
    assert answers["token", 0].finish is Finish.STOP
    assert answers["end", 0].tokens == [1] and answers["end", 0].text == ""
    assert answers["end", 0].finish is Finish.STOP
    assert answers["later", 0].tokens == [*free.tokens[:3], 1]
    assert answers["ignored", 0].tokens == [1] * 5
    assert answers["ignored", 0].finish is Finish.LENGTH


def test_logprobs_are_the_references(folder: Path, model: PreTrainedModel) -> None:
    config = engine_config(folder, max_batch_tokens=6)
    answer = served(config, Request("a", PROMPT, greedy(6, logprobs=3)))["a", 0]
    with torch.inference_mode():
        logits_TV = model(torch.tensor([[*PROMPT, *answer.tokens]])).logits[0, len(PROMPT) - 1 : -1]
    log_TV = torch.log_softmax(logits_TV, -1)
    for t, logprobs in enumerate(answer.logprobs):
        assert logprobs.token == answer.tokens[t]
        assert logprobs.logprob == pytest.approx(float(log_TV[t, logprobs.token]), abs=1e-4)
        assert [v for _, v in logprobs.top] == pytest.approx(
            log_TV[t].topk(3).values.tolist(), abs=1e-4
        )


def test_embeddings_are_means_of_hidden_states(folder: Path, model: PreTrainedModel) -> None:
    prompts = [PROMPT, PROMPT[:3]]
    vectors = with_engine(engine_config(folder), lambda engine: engine.embed(prompts))
    for prompt, vector in zip(prompts, vectors, strict=True):
        with torch.inference_mode():
            hidden = model.base_model(torch.tensor([prompt])).last_hidden_state[0].mean(0)
        assert vector == pytest.approx((hidden / hidden.norm()).tolist(), abs=1e-5)


@pytest.mark.parametrize("prefix", ["none", "radix"])
def test_cancelled_requests_free_their_memory_and_end_once(folder: Path, prefix: str) -> None:
    async def use(engine: Engine) -> Answers:
        answers: Answers = defaultdict(Answer)
        for name in ("a", "b", "c"):
            await engine.submit(Request(name, PROMPT, greedy(100), n=2))
        async for deltas in engine.steps():
            for delta in deltas:
                answers[delta.request_id, delta.index].add(delta)
            if any(len(answer.tokens) > 2 for answer in answers.values()):
                break
        for name in ("a", "b", "c", "unknown", "a"):
            await engine.cancel(name)
        await collect(engine, answers, 6)
        load = engine.load()
        assert load.blocks_used == load.blocks_cached
        assert bool(load.blocks_cached) == (prefix == "radix")
        await engine.submit(Request("a", PROMPT, greedy(3)))  # the name is free again
        answers = defaultdict(Answer)
        await collect(engine, answers, 1)
        assert answers["a", 0].finish is Finish.LENGTH
        return answers

    with_engine(engine_config(folder, prefix=prefix, max_sequences=4), use)


def test_more_than_may_wait_is_refused_with_a_time(folder: Path) -> None:
    async def use(engine: Engine) -> None:
        for name in range(4):
            await engine.submit(Request(f"{name}", PROMPT, greedy(50)))
        with pytest.raises(Overloaded) as error:
            await engine.submit(Request("more", PROMPT, greedy(50)))
        assert error.value.retry_after_s >= 1
        answers: Answers = defaultdict(Answer)
        await collect(engine, answers, 4)
        await engine.submit(Request("more", PROMPT, greedy(1)))
        await collect(engine, answers, 5)

    with_engine(engine_config(folder, max_sequences=2, max_waiting=2), use)


def test_who_is_more_urgent_goes_first(folder: Path) -> None:
    async def use(engine: Engine) -> list[str]:
        for number, priority in enumerate((0, 0, 5, -1)):
            request = Request(f"{number}", PROMPT, greedy(4), priority=priority)
            await engine.submit(request)
        ended: list[str] = []
        async for deltas in engine.steps():
            ended += [delta.request_id for delta in deltas if delta.finish]
            if len(ended) == 4:
                return ended
        raise AssertionError

    ended = with_engine(engine_config(folder, max_sequences=1), use)
    assert ended.index("3") <= 1 and ended[-1] == "2"  # 0 may have begun before 3 came


def test_priorities_may_change_while_requests_wait(folder: Path) -> None:
    async def use(engine: Engine) -> list[str]:
        for number in range(3):
            await engine.submit(Request(f"{number}", PROMPT, greedy(60)))
        await engine.prioritise({"2": -1, "gone": 5})
        ended: list[str] = []
        async for deltas in engine.steps():
            ended += [delta.request_id for delta in deltas if delta.finish]
            if len(ended) == 3:
                return ended
        raise AssertionError

    ended = with_engine(engine_config(folder, max_sequences=1), use)
    assert ended.index("2") < ended.index("1")


@pytest.mark.parametrize("swap_blocks", [0, 64])
def test_who_becomes_more_urgent_takes_a_place_and_no_answer_changes(
    folder: Path, swap_blocks: int
) -> None:
    requests = [Request(f"{n}", PROMPT[n:], greedy(60), priority=n) for n in range(3)]
    expected = served(engine_config(folder), *requests)
    config = engine_config(folder, max_sequences=1, swap_blocks=swap_blocks)
    worker = build_worker(config)
    for request in requests:
        worker.add(request)
    answers: Answers = defaultdict(Answer)
    ended: list[str] = []
    while worker.busy:
        for delta in worker.step():
            answers[delta.request_id, delta.index].add(delta)
            ended += [delta.request_id] if delta.finish else []
        if len(answers["0", 0].tokens) == 10:
            worker.prioritise({"2": -1})
        if len(answers["2", 0].tokens) == 20:
            worker.prioritise({"1": -2})
    load = worker.load()
    assert ended == ["1", "2", "0"] and load.preemptions_total == 2
    assert load.swap_ins_total == (2 if swap_blocks else 0)
    assert load.busy_s_total > 0
    for key, answer in expected.items():
        assert answers[key].tokens == answer.tokens


@pytest.mark.parametrize(
    ("request_", "error", "param"),
    [
        (Request("a", (), greedy()), InvalidRequest, "prompt"),
        (Request("a", (VOCABULARY,), greedy()), InvalidRequest, "prompt"),
        (Request("a", (-1, 3), greedy()), InvalidRequest, "prompt"),
        (Request("a", PROMPT, greedy(108)), ContextTooLong, "max_tokens"),
        (Request("a", PROMPT * 7, greedy(1)), ContextTooLong, "prompt"),
        (Request("a", PROMPT, greedy(), n=0), InvalidRequest, "n"),
        (Request("a", PROMPT, greedy(), n=65), InvalidRequest, "n"),
        (Request("a", PROMPT, greedy(0)), InvalidRequest, "max_tokens"),
        (Request("a", PROMPT, Sampling(3, temperature=-1)), InvalidRequest, "temperature"),
        (
            Request("a", PROMPT, Sampling(3, temperature=float("nan"))),
            InvalidRequest,
            "temperature",
        ),
        (Request("a", PROMPT, Sampling(3, top_p=0)), InvalidRequest, "top_p"),
        (Request("a", PROMPT, Sampling(3, logprobs=21)), InvalidRequest, "logprobs"),
        (Request("a", PROMPT, Sampling(3, logit_bias={300: 1.0})), InvalidRequest, "logit_bias"),
        (Request("a", PROMPT, Sampling(3, stop=("",))), InvalidRequest, "stop"),
        (Request("a", PROMPT, greedy(), adapter="x"), ModelNotFound, "model"),
    ],
)
def test_what_cannot_be_answered_is_refused_by_its_field(
    folder: Path, request_: Request, error: type[Exception], param: str
) -> None:
    async def use(engine: Engine) -> None:
        with pytest.raises(error) as refused:
            await engine.submit(request_)
        assert refused.value.param == param  # type: ignore[attr-defined]

    with_engine(engine_config(folder), use)


def test_the_end_of_an_engine_reaches_every_request(folder: Path) -> None:
    """Its memory is taken away while it runs: whoever waits hears of it, and so does ``check``."""

    async def use() -> None:
        config = engine_config(folder)
        workers = []

        def build() -> Any:
            workers.append(build_worker(config))
            return workers[0]

        now = [0.0]
        engine = NativeEngine(config, build, lambda: now[0])
        with pytest.raises(EngineDead, match="not started"):
            _ = engine.facts
        await engine.start()
        engine.check()
        now[0] = 1000.0
        engine.check()  # it has nothing to do
        workers[0]._kv = None
        await engine.submit(Request("a", PROMPT, greedy(50), n=2))
        answers: Answers = defaultdict(Answer)
        await collect(engine, answers, 2)
        assert {answer.finish for answer in answers.values()} == {Finish.FAILED}
        assert answers["a", 1].error == "the engine has died"
        with pytest.raises(EngineDead):
            await collect(engine, answers, 3)
        with pytest.raises(EngineDead, match="AttributeError"):
            engine.check()
        with pytest.raises(EngineDead):
            await engine.submit(Request("b", PROMPT, greedy(5)))
        await engine.close()
        await engine.close()

    asyncio.run(use())


def test_a_stall_is_seen(folder: Path) -> None:
    async def use() -> None:
        now = [0.0]
        config = engine_config(folder)
        engine = NativeEngine(config, lambda: build_worker(config), lambda: now[0])
        await engine.start()
        engine._inbox = type(engine._inbox)()  # what is submitted never arrives
        await engine.submit(Request("a", PROMPT, greedy(5)))
        engine.check()
        now[0] = config.stall_s + 1
        with pytest.raises(EngineDead, match="hangs"):
            engine.check()

    asyncio.run(use())


def test_closing_cancels_what_is_left(folder: Path) -> None:
    async def use() -> list[Finish | None]:
        engine = build_engine(engine_config(folder, max_sequences=2))
        await engine.start()
        for name in range(4):
            await engine.submit(Request(f"{name}", PROMPT, greedy(100)))
        await engine.close()
        ended = [d.finish async for deltas in engine.steps() for d in deltas if d.finish]
        with pytest.raises(EngineDead, match="closed"):
            engine.check()
        return ended

    assert asyncio.run(use()) == [Finish.CANCELLED] * 4


def test_models_that_would_not_be_right_are_refused_by_name(folder: Path, tmp_path: Path) -> None:
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 32}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = AutoConfig.for_model("llama4_text", **sizes, num_local_experts=2, head_dim=16)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"model\.layers\.0 \(Llama4TextDecoderLayer\) is of type"):
        build_worker(engine_config(tmp_path))
    with pytest.raises(ModelError, match="cannot load"):
        asyncio.run(build_engine(engine_config(tmp_path / "nowhere")).start())
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(TokenizerError, match="no usable tokenizer"):
        build_worker(engine_config(bare))


def test_the_digest_is_of_weights_and_configuration(folder: Path, tmp_path: Path) -> None:
    digest = with_engine(engine_config(folder), _digest)
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert with_engine(engine_config(tmp_path), _digest) == digest
    text = json.loads((tmp_path / "config.json").read_text())
    text["rms_norm_eps"] = 1e-4
    (tmp_path / "config.json").write_text(json.dumps(text))
    assert with_engine(engine_config(tmp_path), _digest) != digest


async def _digest(engine: Engine) -> str:
    return engine.facts.digest
