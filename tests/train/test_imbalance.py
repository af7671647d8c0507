"""A job with hot experts: what its log says of loads, waiting and copies is what was put into it.

The routers' choices are given, a row takes an expert a set time, a gather and an attention take
set times as well, so that every figure follows by hand.
"""

from __future__ import annotations

import copy
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from jobs import TOY, write_corpus
from ranks import run_ranks
from rich.console import Console

from collectives.transports import Launch, Steps, Transport
from hecate.checkpoint.store import CheckpointStore
from hecate.fssdp.experts import ExpertKernel, ExpertMath, HeldExperts, Saved
from hecate.logging.jsonl import JsonlSink
from hecate.mesh import ParallelContext
from hecate.train.build import build_trainer
from hecate.train.config import RunConfig
from hecate.train.host_memory import FreedMemory
from hecate.train.inputs import read_inputs
from hecate.train.loop import TrainingLoop
from hecate.train.metrics import PhaseClock
from hecate.train.profile import Recorder

STEPS, TOKENS = 4, 24
ROW_S, ATTENTION_S, GATHER_S = 1e-3, 0.04, 0.1
SLACK_S = 0.02  # of a machine that is busy
# Second choices of a rank's 24 tokens; expert ``HOT`` of the layer is the first of each.
HOT = (0, 2, None)
SECOND = (
    [1] * 12 + [2] * 6 + [3] * 6,
    [3] * 12 + [0] * 6 + [1] * 6,
)
# Over both ranks, of which 0 owns experts 0 and 1: slots of experts, of ranks.
TOKENS_PER_EXPERT = [[48, 24, 12, 12], [12, 12, 48, 24], [24, 24, 24, 24]]
EXPERTS_MAX_OVER_MEAN = [48 / 24, 48 / 24, 1.0]
RANKS_MAX_OVER_MEAN = [72 / 48, 72 / 48, 1.0]
# Forward and backward: the rank of 72 rows takes 2 * 72 ms, the ranks' mean is 2 * 48 ms.
WAIT_S = [2 * 24 * ROW_S, 2 * 24 * ROW_S, 0.0]


def choices(layer: int) -> torch.Tensor:
    hot = HOT[layer]
    if hot is None:
        return torch.tensor([[0, 1], [2, 3]] * (TOKENS // 2))
    return torch.tensor([[hot, second] for second in SECOND[layer]])


def chosen(layer: int, top_k_index_TK: torch.Tensor) -> torch.Tensor:
    """In place of the router's; what is measured before training has other numbers of tokens."""
    num_tokens = len(top_k_index_TK)
    return choices(layer).repeat(-(-num_tokens // TOKENS), 1)[:num_tokens]


class SlowRows:
    """A kernel on a machine where each row takes ``ROW_S`` each way, beside what it takes here."""

    def __init__(self, kernel: ExpertKernel) -> None:
        self._kernel = kernel

    def forward(
        self,
        x_RD: torch.Tensor,
        weights_R: torch.Tensor,
        rows: Sequence[int],
        held: Sequence[HeldExperts],
        math: ExpertMath,
    ) -> tuple[torch.Tensor, Saved]:
        time.sleep(sum(rows) * ROW_S)
        return self._kernel.forward(x_RD, weights_R, rows, held, math)

    def backward(
        self,
        d_y_RD: torch.Tensor,
        x_RD: torch.Tensor,
        weights_R: torch.Tensor,
        saved: Saved,
        rows: Sequence[int],
        held: Sequence[HeldExperts],
        math: ExpertMath,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        time.sleep(sum(rows) * ROW_S)
        return self._kernel.backward(d_y_RD, x_RD, weights_R, saved, rows, held, math)


class Arrival(dist.Work):
    """Works that are over no sooner than a point in time."""

    def __init__(self, works: Sequence[dist.Work], at: float) -> None:
        super().__init__()
        self._works, self._at = works, at

    def is_completed(self) -> bool:
        return time.perf_counter() >= self._at

    def wait(self, timeout: object = None) -> bool:
        for work in self._works:
            work.wait()
        time.sleep(max(0.0, self._at - time.perf_counter()))
        return True


class SlowGathers:
    """A transport whose gathers take ``GATHER_S``."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self.name, self.hierarchical = transport.name, transport.hierarchical
        self.takes_everyone, self.resources = transport.takes_everyone, transport.resources

    def gather(self, launch: Launch) -> Steps:
        at = time.perf_counter() + GATHER_S
        for works in self._transport.gather(launch):
            yield [Arrival(works, at)]

    def reduce(self, launch: Launch) -> Steps:
        return self._transport.reduce(launch)


def configuration(folder: str, policy: str) -> RunConfig:
    toy = copy.deepcopy(TOY)
    toy["model"]["sizes"]["num_hidden_layers"] = len(HOT)
    toy["data"] |= {
        "path": f"{folder}/corpus",
        "cache": f"{folder}/cache",
        "sequence_tokens": TOKENS,
    }
    toy["train"] = {"steps": STEPS + 1, "batch_sequences": 2}
    toy["checkpoint"] = {"every": 100}
    # A copy is a gather and a reduction of as many bytes. It costs nothing where it is planned.
    costs = {"slot_s": 2 * ROW_S, "copy_s": 2 * GATHER_S, "hidden_s": 10.0}
    toy["experts"] = {"policy": policy, "transport": "p2p", "costs": costs}
    return RunConfig(**toy)


def train_on_rank(
    ctx: ParallelContext, folder: str, policy: str, run: Path
) -> list[dict[str, Any]]:
    config = configuration(folder, policy)
    inputs = read_inputs(config, ctx, run, Console(quiet=True), lambda text: None)
    phases = PhaseClock(time.perf_counter)
    trainer = build_trainer(
        config,
        ctx,
        vocab_size=inputs.vocab_size,
        phase=phases.phase,
        override=chosen,
        gathers_by=SlowGathers,
        kernels_by=SlowRows,
    )
    for block in trainer.model.model.layers:
        block.self_attn.register_forward_pre_hook(lambda *_: time.sleep(ATTENTION_S))
    sinks = [JsonlSink(run / "metrics.jsonl")] if ctx.rank == 0 else []
    TrainingLoop(
        config,
        ctx,
        trainer,
        inputs.stream(config, ctx, lambda text: None),
        inputs.corpus,
        CheckpointStore(run / "checkpoints", group=ctx.groups.checkpoint, rank=ctx.rank, keep=1),
        sinks,
        phases,
        None,
        FreedMemory(lambda: 0, lambda: None),
        clock=time.perf_counter,
        peak_flops=1e12,
        stop=iter([False] * (STEPS - 1) + [True]).__next__,  # before the evaluation at the end
        begins=lambda step: None,
        recorder=Recorder(config.profile, ctx, run, phases.phase, lambda text: None),
    ).run(0)
    return [json.loads(line) for sink in sinks for line in open(run / "metrics.jsonl")]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("imbalance")
    write_corpus(folder / "corpus")
    return folder


def lines_of(corpus: Path, policy: str) -> list[dict[str, Any]]:
    run = Path(tempfile.mkdtemp(prefix=policy, dir=corpus))
    lines = run_ranks(train_on_rank, 2, str(corpus), policy, run)[0]
    return [line for line in lines if "loss" in line]


def usual(lines: list[dict[str, Any]], name: str) -> list[float]:
    """The median over steps in each layer: a busy machine makes some step longer."""
    return [
        statistics.median(values) for values in zip(*(line[name] for line in lines), strict=True)
    ]


def hold(corpus: Path, policy: str, expected: Callable[[list[dict[str, Any]]], None]) -> None:
    """``expected`` of a run; of another, where somebody else had the processors meanwhile."""
    for _ in range(4):
        with suppress(AssertionError):
            return expected(lines_of(corpus, policy))
    expected(lines_of(corpus, policy))


def imbalance_stays(lines: list[dict[str, Any]]) -> None:
    assert len(lines) == STEPS
    for line in lines:
        assert line["load/tokens_per_expert"] == TOKENS_PER_EXPERT
        assert line["load/experts_max_over_mean"] == EXPERTS_MAX_OVER_MEAN
        assert line["load/ranks_max_over_mean"] == RANKS_MAX_OVER_MEAN
        assert line["load/computed_max_over_mean"] == RANKS_MAX_OVER_MEAN, "nothing is placed"
        assert line["gather/exposed_s"] == line["gather/hidden_s"] == [0, 0, 0]
        assert line["gather/bytes"] == line["load/copies"] == 0
    assert usual(lines, "load/straggler_wait_s") == pytest.approx(WAIT_S, abs=SLACK_S)


def imbalance_falls(lines: list[dict[str, Any]]) -> None:
    unknown, *planned = lines
    # Of the first step nothing was known, and behind the gate a copy costs more than it saves.
    assert unknown["load/computed_max_over_mean"] == RANKS_MAX_OVER_MEAN
    assert unknown["load/copies"] == 0
    for line in planned:
        assert line["load/experts_max_over_mean"] == EXPERTS_MAX_OVER_MEAN
        assert line["load/ranks_max_over_mean"] == RANKS_MAX_OVER_MEAN, "by owners alone"
        assert max(line["load/computed_max_over_mean"]) <= 1.05
        assert line["load/copies"] == 2, "the hot expert of two layers"
    assert usual(planned, "load/straggler_wait_s") == pytest.approx([0, 0, 0], abs=SLACK_S)
    # The rank that gets the copy computes attention beside its gather, and waits for the rest; the
    # rank that sends it never waits, so that all of it is hidden there.
    exposed_s = (0 + GATHER_S - ATTENTION_S) / 2
    hidden_s = (GATHER_S + ATTENTION_S) / 2
    assert usual(planned, "gather/exposed_s") == pytest.approx([exposed_s] * 2 + [0], abs=SLACK_S)
    assert usual(planned, "gather/hidden_s") == pytest.approx([hidden_s] * 2 + [0], abs=SLACK_S)


def test_expert_parallelism_shows_its_imbalance_in_every_step(corpus: Path) -> None:
    hold(corpus, "expert_parallel", imbalance_stays)


def test_placement_levels_the_same_loads_and_says_what_it_cost(corpus: Path) -> None:
    hold(corpus, "fssdp", imbalance_falls)
