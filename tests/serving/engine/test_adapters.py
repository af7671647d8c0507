"""Adapters in the native engine: mixed in a batch, loaded, replaced and unloaded while it runs."""

from __future__ import annotations

import asyncio
import multiprocessing
import re
import shutil
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from patience import until
from peft_adapters import ATTENTION, EXPERTS, MLP, merged, save_adapter
from served import (
    Answer,
    Answers,
    answer_all,
    collect,
    engine_config,
    greedy,
    save_served,
    served_model,
)
from served import with_engine as run_engine
from transformers import PreTrainedModel

from serving.engine.build import build_engine
from serving.engine.protocol import Engine
from serving.errors import InvalidAdapter, InvalidRequest, ModelNotFound
from serving.request import Finish, Request

SMALLEST_GAP = 1e-4  # between the two likeliest logits: below it rounding may choose another token
TOKENS = 12

PROMPTS = [tuple((13 * i + 7 * j + j * j) % 298 + 2 for j in range(5 + 4 * i)) for i in range(4)]

CASES = {
    "qwen3": ((ATTENTION, ()), ((*ATTENTION, *MLP), ()), (MLP, ())),
    "qwen3_moe": ((ATTENTION, ()), (ATTENTION, EXPERTS), ((), EXPERTS)),
    "mixtral": ((ATTENTION[:2], ()), (ATTENTION, EXPERTS), ((), EXPERTS)),
    "gpt_oss": ((ATTENTION, ()), (ATTENTION, EXPERTS), ((), EXPERTS[1:])),
    "gemma2": ((ATTENTION, ()), (MLP, ()), ((*ATTENTION, *MLP), ())),
}


def reference(model: PreTrainedModel, prompt: tuple[int, ...]) -> tuple[list[int], list[float]]:
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


@pytest.mark.parametrize(
    ("family", "kernels"),
    [*((family, "auto") for family in CASES), ("qwen3", "off"), ("qwen3_moe", "off")],
)
def test_mixed_answers_are_those_of_merged_models(
    family: str, kernels: str, tmp_path: Path
) -> None:
    """Three adapters and none, in one batch, over two slots' room, twice: token for token."""
    model = save_served(tmp_path / "base", family)
    folders = {"": Path()}
    for seed, (modules, parameters) in enumerate(CASES[family]):
        folders[f"a{seed}"] = save_adapter(
            tmp_path / f"a{seed}",
            model,
            rank=(3, 16, 8)[seed],
            modules=modules,
            parameters=parameters,
            seed=seed,
            scale=1.0,
        )
    requests = [
        Request(f"{name}/{i}/{again}", prompt, greedy(TOKENS), adapter=name)
        for again in range(2)
        for i, prompt in enumerate(PROMPTS)
        for name in folders
    ]

    async def ask(engine: Engine) -> Answers:
        for name in list(folders)[1:]:
            await engine.load_adapter(name, str(folders[name]))
        return await answer_all(engine, requests)

    config = engine_config(
        tmp_path / "base",
        blocks=60,
        token_bytes=2048,
        lora={"slots": 2},
        kernels=kernels,
        max_sequences=9,
        max_batch_tokens=23,
    )
    answers = run_engine(config, ask)
    near_ties = 0
    told_apart = set()
    for name, folder in folders.items():
        whole = merged(model, folder) if name else model
        for i, prompt in enumerate(PROMPTS):
            expected, leads = reference(whole, prompt)
            told_apart.add((i, tuple(expected)))
            for again in range(2):
                answer = answers[f"{name}/{i}/{again}", 0]
                assert len(answer.tokens) == TOKENS
                for got, token, lead in zip(answer.tokens, expected, leads, strict=True):
                    if got != token:
                        assert lead < SMALLEST_GAP, (name, i, got, token, lead)
                        near_ties += 1
                        break
    print(f"{family}: {near_ties} near ties of {len(requests)} answers")
    assert near_ties <= 2
    assert len(told_apart) > len(PROMPTS) * 3  # the adapters say other things


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, two adapters, and what each of the three says to the first prompt."""
    folder = tmp_path_factory.mktemp("toy")
    model = save_served(folder / "base", "qwen3")
    for seed in range(4):
        save_adapter(folder / f"a{seed}", model, rank=4 * seed + 4, seed=seed, scale=1.0)
    return folder


def ask(name: str, adapter: str = "", tokens: int = TOKENS) -> Request:
    return Request(name, PROMPTS[3], greedy(tokens), adapter=adapter)


def test_a_name_that_is_loaded_again_never_meets_old_keys(toy: Path, tmp_path: Path) -> None:
    shutil.copytree(toy / "a0", tmp_path / "live")

    async def use(engine: Engine) -> None:
        first = await engine.load_adapter("x", str(tmp_path / "live"))
        assert await engine.load_adapter("y", str(toy / "a0")) != first
        assert [facts.name for facts in engine.adapters()] == ["x", "y"]
        old = (await answer_all(engine, [ask("1", "x")]))["1", 0]
        shutil.copytree(toy / "a1", tmp_path / "live", dirs_exist_ok=True)
        second = await engine.load_adapter("x", str(tmp_path / "live"))
        assert second.digest != first.digest
        new = (await answer_all(engine, [ask("2", "x")]))["2", 0]
        base = (await answer_all(engine, [ask("3")]))["3", 0]
        same = (await answer_all(engine, [ask("4", "y")]))["4", 0]
        assert len({tuple(a.tokens) for a in (old, new, base)}) == 3
        assert new.usage and new.usage.cached == 0
        assert base.usage and base.usage.cached == 0
        assert same.tokens == old.tokens
        assert same.usage and same.usage.cached > 0  # another name, the same content

    run_engine(engine_config(toy / "base"), use)


def test_unloading_lets_requests_under_way_finish(toy: Path) -> None:
    async def use(engine: Engine) -> None:
        await engine.load_adapter("x", str(toy / "a0"))
        expected = (await answer_all(engine, [ask("0", "x", 60)]))["0", 0]
        answers: Answers = defaultdict(Answer)
        await engine.submit(ask("1", "x", 60))
        await engine.unload_adapter("x")
        with pytest.raises(ModelNotFound, match="no adapter x"):
            await engine.submit(ask("2", "x"))
        with pytest.raises(ModelNotFound):
            await engine.unload_adapter("x")
        await collect(engine, answers, 1)
        assert answers["1", 0].tokens == expected.tokens
        assert engine.adapters() == []

    run_engine(engine_config(toy / "base"), use)


def test_more_adapters_than_slots_all_get_their_turn(toy: Path) -> None:
    """One slot; hot requests of one adapter keep coming, the others' are answered all the same."""

    async def use(engine: Engine) -> None:
        for seed in range(4):
            await engine.load_adapter(f"a{seed}", str(toy / f"a{seed}"))
        alone = {}
        for seed in range(4):
            answers = await answer_all(engine, [ask(f"alone{seed}", f"a{seed}")])
            alone[f"a{seed}"] = answers[f"alone{seed}", 0].tokens
        mixed: Answers = defaultdict(Answer)
        names = ["a0", "a0", "a3", "a0", "a1", "a2", "a0", "a3", ""]
        for number, name in enumerate(names):
            await engine.submit(ask(f"{number}", name))
        await collect(engine, mixed, len(names))
        for number, name in enumerate(names):
            if name:
                assert mixed[f"{number}", 0].tokens == alone[name]
        load = engine.load()
        assert load.waiting == load.running == load.tokens_in_flight == 0

    run_engine(engine_config(toy / "base", lora={"slots": 1, "patience_s": 0.05}), use)


def test_a_request_that_waits_for_its_adapter_can_be_cancelled(toy: Path) -> None:
    async def use(engine: Engine) -> None:
        for name in ("a3", "a2"):
            await engine.load_adapter(name, str(toy / name))
        answers: Answers = defaultdict(Answer)
        await engine.submit(ask("1", "a3", 80))
        await engine.submit(Request("2", PROMPTS[0], greedy(5), n=2, adapter="a2"))
        await engine.cancel("2")
        await collect(engine, answers, 3)
        assert answers["1", 0].finish is Finish.LENGTH
        assert answers["2", 0].finish is answers["2", 1].finish is Finish.CANCELLED
        await engine.submit(ask("2", "a2"))
        await collect(engine, answers := defaultdict(Answer), 1)
        assert answers["2", 0].finish is Finish.LENGTH

    run_engine(engine_config(toy / "base", lora={"slots": 1}), use)


def test_files_that_go_or_change_fail_the_requests_of_their_adapter_alone(
    toy: Path, tmp_path: Path
) -> None:
    shutil.copytree(toy / "a0", tmp_path / "gone")
    shutil.copytree(toy / "a1", tmp_path / "changed")

    async def use(engine: Engine) -> None:
        await engine.load_adapter("gone", str(tmp_path / "gone"))
        await engine.load_adapter("changed", str(tmp_path / "changed"))
        shutil.rmtree(tmp_path / "gone")
        shutil.copytree(toy / "a2", tmp_path / "changed", dirs_exist_ok=True)
        answers = await answer_all(engine, [ask("1", "gone"), ask("2"), ask("3", "changed")])
        assert answers["1", 0].finish is Finish.FAILED
        assert "there is no adapter in" in answers["1", 0].error
        assert answers["2", 0].finish is Finish.LENGTH
        assert answers["3", 0].finish is Finish.FAILED
        assert "were changed after it was loaded" in answers["3", 0].error
        await engine.load_adapter("changed", str(tmp_path / "changed"))
        answers = await answer_all(engine, [ask("4", "changed")])
        assert answers["4", 0].finish is Finish.LENGTH

    # Nothing fits the host's memory, so that every load reads the files.
    run_engine(engine_config(toy / "base", lora={"host_cache_mib": 0}), use)


def test_a_folder_is_watched(toy: Path, tmp_path: Path) -> None:
    shutil.copytree(toy / "a0", tmp_path / "old")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "adapter_config.json").write_text("{}")
    (tmp_path / "broken" / "adapter_model.safetensors").write_text("")

    async def names(engine: Engine, expected: list[str]) -> None:
        for _ in range(400):
            if [facts.name for facts in engine.adapters()] == expected:
                return
            await asyncio.sleep(0.02)
        raise AssertionError([facts.name for facts in engine.adapters()])

    async def use(engine: Engine) -> None:
        assert [facts.name for facts in engine.adapters()] == ["old"]  # at once
        await engine.load_adapter("by hand", str(toy / "a3"))
        old = (await answer_all(engine, [ask("1", "old")]))["1", 0]
        shutil.copytree(toy / "a1", tmp_path / "new")
        shutil.copytree(toy / "a2", tmp_path / "broken", dirs_exist_ok=True)
        await names(engine, ["broken", "by hand", "new", "old"])
        shutil.rmtree(tmp_path / "new")
        await names(engine, ["broken", "by hand", "old"])
        digest = engine.adapters()[2].digest
        shutil.copytree(toy / "a1", tmp_path / "old", dirs_exist_ok=True)
        for _ in range(400):
            if engine.adapters()[2].digest != digest:
                break
            await asyncio.sleep(0.02)
        assert (await answer_all(engine, [ask("2", "old")]))["2", 0].tokens != old.tokens

    config = engine_config(toy / "base", lora={"folder": str(tmp_path), "watch_s": 0.05})
    run_engine(config, use)


def test_what_cannot_be_loaded_is_refused_by_name(toy: Path, tmp_path: Path) -> None:
    async def use(engine: Engine) -> None:
        with pytest.raises(InvalidAdapter, match="there is no adapter in"):
            await engine.load_adapter("x", str(tmp_path))
        with pytest.raises(InvalidAdapter, match="too large"):
            await engine.load_adapter("x", str(toy / "a3"))
        with pytest.raises(InvalidRequest, match="no name"):
            await engine.load_adapter("", str(toy / "a0"))
        with pytest.raises(ModelNotFound, match="no adapter x"):
            await engine.submit(ask("1", "x"))

    run_engine(engine_config(toy / "base", lora={"max_rank": 8}), use)

    async def without(engine: Engine) -> None:
        with pytest.raises(InvalidRequest, match="serves no adapters"):
            await engine.load_adapter("x", str(toy / "a0"))

    run_engine(engine_config(toy / "base", lora={"slots": 0}), without)


def test_what_requests_load_and_unload_outlives_the_engine(toy: Path, tmp_path: Path) -> None:
    """Two engines over one folder, and a third one after them, serve the same."""
    shutil.copytree(toy / "a0", tmp_path / "inside")
    config = engine_config(toy / "base", lora={"folder": str(tmp_path), "watch_s": 0.05})

    async def names(engine: Engine, expected: list[str]) -> None:
        for _ in range(400):
            if [facts.name for facts in engine.adapters()] == expected:
                return
            await asyncio.sleep(0.02)
        raise AssertionError([facts.name for facts in engine.adapters()])

    async def use(first: Engine) -> None:
        second = build_engine(config)
        await second.start()
        try:
            facts = await first.load_adapter("outside", str(toy / "a1"))
            await names(second, ["inside", "outside"])
            assert second.adapters()[1] == facts
            await second.unload_adapter("inside")
            await names(first, ["outside"])
        finally:
            await second.close()

    run_engine(config, use)
    run_engine(config, lambda third: names(third, ["outside"]))


@pytest.mark.parametrize(
    ("cold", "kernels", "came"),
    [
        ("wait", "auto", "by wait"),
        ("pipeline", "auto", r"steps waited [1-9]"),
        ("pipeline", "off", r"steps waited [1-9]"),
        ("assist", "auto", r"the host computed ([4-9]|\d\d+) projections"),
    ],
)
def test_a_cold_adapter_answers_as_a_resident_one(
    cold: str, kernels: str, came: str, toy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """While it is loaded, slowly, and once it is there; others decode beside it all the time."""

    async def use(engine: Engine) -> tuple[Answers, Answers]:
        for seed in range(3):
            await engine.load_adapter(f"a{seed}", str(toy / f"a{seed}"))
        first: Answers = defaultdict(Answer)
        await engine.submit(ask("base", "", 60))
        await engine.submit(ask("a0", "a0"))
        await engine.submit(ask("a1", "a1"))
        await collect(engine, first, 3)
        again = await answer_all(engine, [ask(f"again{i}", f"a{i}") for i in range(2)])
        until(lambda: re.search(came, caplog.text), came)  # it may all be over before a load is
        return first, again

    with caplog.at_level("INFO"):
        config = engine_config(
            toy / "base",
            lora={"slots": 2, "cold": cold, "host_workers": 1, "throttle_ms": 250.0},
            kernels=kernels,
            prefix="none",
        )
        first, again = run_engine(config, use)
    model = served_model("qwen3")
    for seed in range(2):
        expected, leads = reference(merged(model, toy / f"a{seed}"), PROMPTS[3])
        assert min(leads) > SMALLEST_GAP
        assert first[f"a{seed}", 0].tokens == again[f"again{seed}", 0].tokens == expected


def test_the_host_that_dies_is_done_without(toy: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def use(engine: Engine) -> Answers:
        for seed in range(2):
            await engine.load_adapter(f"a{seed}", str(toy / f"a{seed}"))
        await answer_all(engine, [ask("first", "a0")])
        (process,) = [p for p in multiprocessing.active_children() if p.name == "hecate-lora"]
        process.kill()
        process.join()
        return await answer_all(engine, [ask("a1", "a1")])

    lora = {"cold": "assist", "host_workers": 1, "throttle_ms": 100.0}
    answers = run_engine(engine_config(toy / "base", lora=lora), use)
    expected, _ = reference(merged(served_model("qwen3"), toy / "a1"), PROMPTS[3])
    assert answers["a1", 0].tokens == expected
    assert "the host computes no adapters' shares any longer" in caplog.text


def test_the_host_does_all_of_an_adapter_that_finds_no_place(
    toy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One slot; both answer at once as they did alone, and the slot is the first one's."""

    async def use(engine: Engine) -> tuple[Answers, Answers]:
        alone: Answers = defaultdict(Answer)
        for name in ("a1", "a3"):
            await engine.load_adapter(name, str(toy / name))
            alone |= await answer_all(engine, [ask(name, name)])
        mixed = await answer_all(engine, [ask("long", "a3", 90), ask("a1", "a1"), ask("a3", "a3")])
        return alone, mixed

    lora = {"slots": 1, "max_rank": 16, "cold": "assist", "host_workers": 1, "patience_s": 60.0}
    with caplog.at_level("INFO"):
        alone, mixed = run_engine(engine_config(toy / "base", lora=lora, prefix="none"), use)
    assert re.search(r"ended without a place: the host computed \d\d+ projections", caplog.text)
    for name in ("a1", "a3"):
        assert len(mixed[name, 0].tokens) == TOKENS
        assert mixed[name, 0].tokens == alone[name, 0].tokens
