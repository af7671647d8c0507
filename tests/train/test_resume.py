"""A run that stopped and was resumed is the run that never stopped, at its world or another."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from jobs import metrics, write_corpus
from ranks import RankError, run_ranks
from reference import WideFloats
from toy_models import toy_config

from hecate.checkpoint.integrity import encode_meta, read_record, write_record
from hecate.checkpoint.reader import CheckpointReader
from hecate.mesh import ParallelContext
from hecate.train.config import RunConfig, TrainConfig
from hecate.train.run import train

STOP, STEPS = 3, 9
LAST = f"step-{STEPS:08d}"


# Copies cost next to nothing and owners are looked at every other step, so that experts move.
RESTLESS = {
    "fssdp": {"reshard_every": 2, "reshard_at": 1.0},
    "swapping": {"every": 2},
    # replicas come one by one: what is held depends on every step before
    "replication": {"slack": 1.0, "changes_per_step": 1},
    "costs": {"slot_s": 1.0, "copy_s": 1e-9},
}


@dataclass(frozen=True)
class Case:
    family: str = "qwen3_moe"
    dtype: str = "float32"
    bias_update_rate: float = 0.0
    accumulation: int = 1
    dropout: float = 0.0
    restless: bool = False
    policy: str = "fssdp"

    @property
    def name(self) -> str:
        moves = "restless" if self.restless else "calm"
        return f"{self.family}-{self.dtype}-{self.dropout}-{self.policy}-{moves}"

    def config(self, folder: Path, name: str) -> RunConfig:
        sizes = toy_config(self.family).to_diff_dict()
        for key in ("model_type", "transformers_version", "architectures", "dtype", "vocab_size"):
            sizes.pop(key, None)
        if self.dropout:
            sizes["attention_dropout"] = self.dropout
        return RunConfig(
            name=name,
            folder=str(folder / "runs"),
            seed=5,
            model={
                "family": self.family,
                "sizes": sizes,
                "attention": "sdpa" if self.dropout else "auto",
            },
            data={
                "path": str(folder / "corpus"),
                "cache": str(folder / "cache"),
                "sequence_tokens": 24,
                "tokenizer": {"vocab_size": 280},
            },
            experts={"policy": self.policy, **(RESTLESS if self.restless else {})},
            router={"balance_loss": 0.01, "bias_update_rate": self.bias_update_rate},
            train={
                "steps": STEPS,
                "batch_sequences": 5 * self.accumulation,
                "accumulation": self.accumulation,
                "dtype": self.dtype,
            },
            schedule={"kind": "cosine", "warmup_steps": 4},
            checkpoint={"every": STOP, "keep": 0},
            logging={"every": 1, "sinks": ["jsonl"]},
        )


def train_on_rank(ctx: ParallelContext, config: RunConfig, resume: str) -> None:
    with WideFloats() if config.train.dtype == "float64" else contextlib.nullcontext():
        train(config, origins={}, resume=resume)


class Runs:
    """Runs over one corpus; each uninterrupted one is made once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._straight: dict[tuple[Case, int], Path] = {}
        write_corpus(folder / "corpus", files=4)

    def straight(self, case: Case, world_size: int) -> Path:
        """The folder of a run from the first step to the last."""
        key = (case, world_size)
        if key not in self._straight:
            name = f"straight-{len(self._straight)}"
            run_ranks(train_on_rank, world_size, case.config(self.folder, name), "none")
            self._straight[key] = self.folder / "runs" / name
        return self._straight[key]

    def stopped(self, case: Case, world_size: int, name: str) -> Path:
        """That run as it would lie if it had been killed some steps after its checkpoint."""
        run = self.folder / "runs" / name
        shutil.copytree(self.straight(case, world_size), run)
        for path in (run / "checkpoints").iterdir():
            if path.name != f"step-{STOP:08d}":
                shutil.rmtree(path)
        return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    yield Runs(tmp_path_factory.mktemp("resume"))


def numbers(run: Path) -> list[dict[str, Any]]:
    """What each step did, as far as it does not depend on the clock."""
    names = ("step", "loss", "auxiliary_loss", "grad_norm", "learning_rate")
    loads = ("load/tokens_per_expert", "load/computed_max_over_mean", "load/copies")
    return [{name: line[name] for name in (*names, *loads)} for line in metrics(run)]


def final_state(run: Path) -> dict[str, torch.Tensor]:
    reader = CheckpointReader(run / "checkpoints" / LAST)
    return {key: reader.tensor(key) for key in reader.keys()}


BIASED = Case(family="deepseek_v3", bias_update_rate=0.01, accumulation=2)
REPLICATED = Case(dtype="float64", restless=True, policy="replication")


@pytest.mark.parametrize(
    ("case", "world_size"),
    [
        pytest.param(Case(), 1, id="qwen3_moe-1"),
        pytest.param(Case(), 2, id="qwen3_moe-2"),
        pytest.param(BIASED, 1, id="deepseek_v3-bias-1"),
        pytest.param(BIASED, 2, id="deepseek_v3-bias-2"),
        pytest.param(Case(dtype="bfloat16"), 2, id="bfloat16-2"),
        pytest.param(Case(dropout=0.2), 2, id="dropout-2"),
        pytest.param(Case(restless=True), 2, id="restless-2"),
        pytest.param(Case(restless=True), 3, id="restless-3"),
        *(
            pytest.param(Case(restless=True, policy=policy), 2, id=f"{policy}-2")
            for policy in ("expert_parallel", "shadowing", "swapping", "replication", "fsdp")
        ),
        pytest.param(Case(restless=True, policy="replication"), 3, id="replication-3"),
    ],
)
def test_an_equal_world_goes_on_bit_for_bit(runs: Runs, case: Case, world_size: int) -> None:
    straight = runs.straight(case, world_size)
    resumed = runs.stopped(case, world_size, f"{case.name}-equal")
    run_ranks(train_on_rank, world_size, case.config(runs.folder, resumed.name), "auto")
    assert numbers(resumed) == numbers(straight)
    assert [line["step"] for line in numbers(resumed)] == list(range(1, STEPS + 1))
    assert len({line["loss"] for line in numbers(resumed)}) == STEPS
    ours, theirs = final_state(resumed), final_state(straight)
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        assert torch.equal(ours[key], tensor), key
    meta = CheckpointReader(resumed / "checkpoints" / LAST).meta
    assert meta["data"]["sequence"] == STEPS * 5 * case.accumulation
    if case.bias_update_rate:
        biases = [ours[key] for key in ours if key.endswith("e_score_correction_bias")]
        assert biases and all(bias.abs().max() >= case.bias_update_rate for bias in biases)
    shutil.rmtree(resumed)


@pytest.mark.parametrize(
    ("case", "before", "world_size", "tolerance"),
    [
        pytest.param(Case(dtype="float64"), 2, 1, 1e-9, id="fp64-1"),
        pytest.param(Case(dtype="float64"), 2, 3, 1e-9, id="fp64-3"),
        pytest.param(Case(dtype="float64"), 2, 4, 1e-9, id="fp64-4"),
        pytest.param(Case(dtype="float64", restless=True), 2, 3, 1e-9, id="fp64-restless-3"),
        pytest.param(REPLICATED, 3, 2, 1e-9, id="fp64-replication-3-2"),
        pytest.param(BIASED, 2, 3, 1e-4, id="fp32-bias-3"),
    ],
)
def test_another_world_goes_on_within_rounding(
    runs: Runs, case: Case, before: int, world_size: int, tolerance: float
) -> None:
    straight = runs.straight(case, before)
    name = f"{case.name}-to-{world_size}"
    source = straight / "checkpoints" / f"step-{STOP:08d}"
    run_ranks(train_on_rank, world_size, case.config(runs.folder, name), str(source))
    resumed = straight.parent / name
    went_on, after = numbers(straight)[STOP:], numbers(resumed)
    assert [line["step"] for line in after] == list(range(STOP + 1, STEPS + 1))
    for old, new in zip(went_on, after, strict=True):
        assert new["learning_rate"] == old["learning_rate"]
        for value in ("loss", "auxiliary_loss", "grad_norm"):
            assert new[value] == pytest.approx(old[value], rel=tolerance, abs=tolerance), value
    ours, theirs = final_state(resumed), final_state(straight)
    for key, tensor in theirs.items():
        if not key.startswith("rng/"):
            torch.testing.assert_close(ours[key], tensor, rtol=tolerance, atol=tolerance)


def test_a_checkpoint_without_the_placements_still_loads(runs: Runs) -> None:
    """Checkpoints of earlier versions know neither owners and loads nor what a policy keeps."""
    case = Case(restless=True, policy="replication")
    resumed = runs.stopped(case, 2, "earlier-version")
    path = resumed / "checkpoints" / f"step-{STOP:08d}"
    record = read_record(path)
    meta = {name: value for name, value in record.meta.items() if name != "experts"}
    write_record(path, record.step, encode_meta(meta), record.files)
    run_ranks(train_on_rank, 2, case.config(runs.folder, resumed.name), "auto")
    for old, new in zip(numbers(runs.straight(case, 2)), numbers(resumed), strict=True):
        assert new["loss"] == pytest.approx(old["loss"], rel=1e-4)


def test_every_rank_and_seed_draws_numbers_of_its_own(runs: Runs) -> None:
    """Without dropout nothing is drawn: the states are those that the run began with."""
    states = final_state(runs.straight(Case(), 2))
    assert not torch.equal(states["rng/0"], states["rng/1"])
    config = Case().config(runs.folder, "another-seed").model_copy(update={"seed": 6})
    run_ranks(train_on_rank, 1, config, "none")
    other = final_state(runs.folder / "runs" / "another-seed")
    assert not torch.equal(states["rng/0"], other["rng/0"])


def test_a_finished_run_is_only_evaluated_again(runs: Runs) -> None:
    straight = runs.straight(Case(), 1)
    before = numbers(straight)
    run_ranks(train_on_rank, 1, Case().config(runs.folder, straight.name), "auto")
    assert numbers(straight) == before


def test_auto_starts_a_run_that_has_no_checkpoint_yet(runs: Runs) -> None:
    config = Case().config(runs.folder, "from-nothing")
    run_ranks(train_on_rank, 1, config, "auto")
    assert numbers(runs.folder / "runs" / "from-nothing") == numbers(runs.straight(Case(), 1))


@pytest.mark.parametrize(
    ("case", "changed", "said"),
    [
        pytest.param(Case(), {"seed": 6}, "place in the data", id="seed"),
        pytest.param(Case("mixtral"), {}, "does not fit this model", id="model"),
        pytest.param(
            Case(), {"train": TrainConfig(steps=2, batch_sequences=5)}, "past the end", id="steps"
        ),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(
    runs: Runs, case: Case, changed: dict[str, Any], said: str
) -> None:
    straight = runs.straight(Case(), 1)
    config = case.config(runs.folder, f"refused-{len(said)}").model_copy(update=changed)
    with pytest.raises(RankError, match=said):
        run_ranks(train_on_rank, 1, config, str(straight / "checkpoints" / LAST))
