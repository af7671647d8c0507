"""The benchmark of serving: its processes, its arithmetic, and a whole small run without vLLM."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from patience import PATIENCE_S
from served import save_served, token_bytes
from transformers import AutoConfig

from hecate.bench.serve.contender import ContenderFailed, started
from hecate.bench.serve.margins import (
    OfflineCell,
    offline_row,
    overhead,
    pressure_row,
    stack_rows,
    summary,
)
from hecate.bench.serve.models import MODELS, tokenizer_of, write_model
from hecate.bench.serve.offline import Cell, rates
from hecate.bench.serve.online import Load, loads, prefix_gain, random_demand
from hecate.bench.serve.pressure import (
    RECOMPUTE,
    ROOMY,
    SWAP,
    Pressure,
    under_pressure,
)
from hecate.bench.serve.roofline import Machine, Needs, least_seconds, needs_of
from hecate.bench.serve.sides import NATIVE, VLLM, Setting, online
from hecate.bench.serve.stack import FirstToken, Stack
from serving.bench.timings import Latencies

CELL = Cell(2, 5, 4)


def test_a_contender_answers_and_one_that_dies_is_named(tmp_path: Path) -> None:
    program = (
        "import json, sys\n"
        "print(json.dumps('ready'), flush=True)\n"
        "print(json.dumps(json.loads(sys.stdin.readline())['a'] + 1), flush=True)\n"
        "sys.exit('out of luck')\n"
    )
    command = [sys.executable, "-c", program]
    with started("it", command, environment={}, folder=tmp_path, timeout_s=PATIENCE_S) as (
        it,
        said,
    ):
        assert said == "ready"
        assert it.ask({"a": 1}, timeout_s=PATIENCE_S) == 2
        with pytest.raises(ContenderFailed, match=r"(?s)it failed.*died.*out of luck"):
            it.answer(timeout_s=PATIENCE_S)
    silent = [sys.executable, "-c", "input()"]
    with pytest.raises(ContenderFailed, match="no answer in 0 s"):
        with started("it", silent, environment={}, folder=tmp_path, timeout_s=0.2):
            pass


def test_the_roofline_by_hand() -> None:
    needs = Needs(
        token_flops=10,
        head_flops=2,
        pair_flops=1,
        dense_bytes=30,
        expert_bytes=4,
        kv_bytes=1,
        moe_layers=2,
        num_experts=4,
        top_k=1,
    )
    # Two prompts of 3: 2 x (3 x 10 + 2) + 2 x 6 pairs = 76 flops. A step after it, of 2 tokens with
    # a context of 4: 2 x (10 + 2 + 4) = 32 flops; 30 + 2 layers x 4 experts x (1 - 0.75^2) x 4
    # + 2 x 4 = 52 bytes.
    slow = Machine(flops_per_s=1, read_bytes_per_s=1e9)
    assert least_seconds(needs, slow, batch=2, prompt_tokens=3, output_tokens=2) == 76 + 32
    narrow = Machine(flops_per_s=1e9, read_bytes_per_s=1)
    whole = 30 + 2 * 4 * (1 - 0.75**6) * 4
    assert least_seconds(needs, narrow, batch=2, prompt_tokens=3, output_tokens=2) == pytest.approx(
        whole + 52
    )


@pytest.mark.parametrize("name", MODELS)
def test_a_models_needs_are_its_parameters(name: str, tmp_path: Path) -> None:
    path = write_model(MODELS[name], tmp_path, context=64, dtype=torch.bfloat16)
    needs = needs_of(AutoConfig.from_pretrained(path), 2)
    experts = needs.moe_layers * needs.num_experts * needs.expert_bytes
    on_disk = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    assert needs.dense_bytes + experts == pytest.approx(on_disk, rel=0.01)  # norms, and the header


def test_every_token_has_a_text() -> None:
    tokenizer = tokenizer_of(400)
    assert len(tokenizer) == 400
    assert len({tokenizer.decode([token]) for token in range(300, 400)}) == 100


def latency(ttft_s: float, tpot_s: float) -> Latencies:
    return Latencies(ttft_s / 2, ttft_s, tpot_s / 2, tpot_s, 9, 0, 0.0)


def test_rows_and_summary_by_hand() -> None:
    fast = OfflineCell("m", CELL, {NATIVE: [20, 30, 26], VLLM: [10, 10, 20]}, roofline=52)
    slow = OfflineCell("m", CELL, {NATIVE: [8], VLLM: [10]}, roofline=40)
    row = offline_row(fast)
    assert (row["native"], row["other"], row["ratio"]) == (26, 10, 2.0)  # of 2, 3 and 1.3
    assert (row["native_roofline"], row["other_roofline"]) == (0.5, pytest.approx(10 / 52))
    load = Load("r", 0.3, 1.0, {NATIVE: latency(0.4, 0.09), VLLM: latency(0.5, 0.1)})
    stack = Stack(16, alone=(100, 100, 200), behind=(95, 80, 160), client_cores=0.1)
    assert overhead(stack) == pytest.approx(0.2)  # of 0.05, 0.2 and 0.2
    first = FirstToken(0.020, 0.026)
    assert [r["ratio"] for r in stack_rows("m", [stack], first)] == pytest.approx([0.8, 1.3])
    found = {ROOMY: [9.0], RECOMPUTE: [3.0, 1.0, 2.0], SWAP: [5.0, 2.0, 4.0]}
    counts = {"preemptions_total": 4, "swap_outs_total": 3, "recomputed_tokens_total": 2}
    pressed = Pressure("m", CELL, 0.3, found, dict.fromkeys(found, counts))
    row = pressure_row(pressed)
    assert (row["native"], row["other"], row["ratio"]) == (4.0, 2.0, 2.0)  # of 1.7, 2 and 2
    assert summary(
        [fast, slow], [load], [stack], [first], [(1.0, 0.1)], [pressed]
    ) == pytest.approx(
        {
            "min_throughput_vs_vllm": 0.8,
            "geomean_throughput_vs_vllm": math.sqrt(1.6),
            "max_p99_vs_vllm": 0.9,
            "stack_overhead": 0.2,
            "stack_ttft_added_ms": 6.0,
            "prefix_ttft_gain": 10.0,
            "swap_vs_recompute": 2.0,
        }
    )


def test_without_vllm_its_columns_say_so() -> None:
    cell = OfflineCell("m", CELL, {NATIVE: [20.0]}, roofline=40)
    row = offline_row(cell)
    assert (row["other"], row["beside"], row["ratio"]) == (None, "vLLM is not installed", None)
    assert math.isnan(summary([cell], [], [], [], [], [])["min_throughput_vs_vllm"])


def test_our_engine_in_its_process(tmp_path: Path) -> None:
    folder = tmp_path / "toy"
    save_served(folder, "qwen3_moe")
    setting = Setting(folder, 1, 128, 8, 0.01, "float32", python="")
    said: list[str] = []
    with online(NATIVE, setting, tmp_path) as (engine, facts):
        assert facts["vocab_size"] == 300
        found = rates([CELL], {NATIVE: engine}, 2, 300, said.append)
        assert len(found[CELL][NATIVE]) == 2 and min(found[CELL][NATIVE]) > 0
        (low, _, high) = loads(
            random_demand(300, (4, 12), (2, 4)), {NATIVE: engine}, count=4, say=said.append
        )
        assert (low.found[NATIVE].answered, low.found[NATIVE].failed) == (4, 0)
        assert high.rate == pytest.approx(3 * low.rate)
        cold_s, warm_s = prefix_gain(engine, 300, rounds=1, prefix_tokens=96, own_tokens=8)
        assert cold_s > 0 and warm_s > 0
        load = engine.ask({"do": "load"}, timeout_s=PATIENCE_S)
        assert load["prefix_hit_tokens_total"] == 96
    assert said[0].startswith("batch 2, 5 in, 4 out: native")


def test_answers_that_outgrow_the_memory(tmp_path: Path) -> None:
    """It takes as long as three engines take to start."""
    folder = tmp_path / "toy"
    model = save_served(folder, "qwen3")
    setting = Setting(folder, 1, 128, 8, 0.01, "float32", python="")
    cell = Cell(4, 20, 60)
    found = under_pressure(
        "toy",
        cell,
        setting,
        share=0.4,
        kv_bytes=token_bytes(model),
        rounds=1,
        vocabulary=300,
        folder=tmp_path,
        say=lambda line: None,
    )
    assert set(found.rates) == {ROOMY, RECOMPUTE, SWAP}
    assert found.loads[ROOMY]["preemptions_total"] == 0
    assert found.loads[RECOMPUTE]["preemptions_total"] > found.loads[RECOMPUTE]["swap_outs_total"]
    assert found.loads[SWAP]["preemptions_total"] > 0
